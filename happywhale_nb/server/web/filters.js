// Filters as controls, with a chip for each active one; stored in the URL and in the browser.

import { button, el, field, fill, later, select } from "./dom.js";
import { day, side, SIDES, species } from "./words.js";

const store = (name) => `happywhale.filters.${name}`;

/** The last filters with this name; filters in the URL have precedence. */
export function initial(name, route, keys) {
  const given = keys.filter((key) => route.params.has(key));
  if (given.length) return Object.fromEntries(keys.map((key) => [key, route.params.get(key) ?? ""]));
  try {
    const saved = JSON.parse(localStorage.getItem(store(name))) ?? {};
    return Object.fromEntries(keys.map((key) => [key, String(saved[key] ?? "")]));
  } catch {
    return Object.fromEntries(keys.map((key) => [key, ""]));
  }
}

/** Stores filters in the browser and in the URL; `keep`: other parameters to keep in the URL. */
export function remember(name, values, path, keep = {}) {
  localStorage.setItem(store(name), JSON.stringify(values));
  const params = new URLSearchParams(Object.entries({ ...values, ...keep }).filter(([, value]) => value));
  history.replaceState(null, "", `#${path}${params.size ? `?${params}` : ""}`);
}

const SAID = {
  species: (value) => species(value), side: (value) => side(value), place: (value) => value,
  since: (value) => `since ${day(value)}`, until: (value) => `until ${day(value)}`, q: (value) => `“${value}”`,
};

/** Makes a bar of controls for these keys (of species, side, place, since, until, q) and its chips.
 *  Calls `changed(values)` with all values. `name` is a prefix of the ids: `#NAME-species` etc. */
export function filterBar(name, keys, values, facets, changed) {
  const chips = el("div", { class: "chips", data: { chips: name } });
  const controls = {};
  const set = (key, value) => {
    values[key] = value;
    if (controls[key].value !== value) controls[key].value = value;
    showChips();
    changed({ ...values });
  };
  const make = (key) => {
    const id = `${name}-${key}`;
    const props = { id, data: { filter: key } };
    const take = () => set(key, controls[key].value);
    if (key === "q") return el("input", { type: "search", value: values.q, placeholder: "Name, file, place …", ...props, onInput: later(take) });
    if (key === "since" || key === "until") return el("input", { type: "date", value: values[key], ...props, onChange: take });
    const known = { species: facets.species.map((value) => [value, species(value)]),
      side: (facets.sides.length ? facets.sides : Object.keys(SIDES)).map((value) => [value, side(value)]),
      place: facets.places.map((value) => [value, value]) }[key];
    return select([["", "Any"], ...known], values[key], { ...props, onChange: take });
  };
  const labels = { species: "Species", side: "Side", place: "Place", since: "Since", until: "Until", q: "Search" };
  const bar = el("div", { class: "filters", role: "group", "aria-label": "Filters" },
    keys.map((key) => { controls[key] = make(key); return field(labels[key], controls[key]); }));

  function showChips() {
    const active = keys.filter((key) => values[key]);
    fill(chips, active.map((key) => button(SAID[key](values[key]), () => { set(key, ""); controls[key].focus(); },
      { class: "chip", data: { chip: key }, "aria-label": `Remove the filter ${labels[key]}: ${SAID[key](values[key])}` })),
    active.length > 1 && button("Clear all", () => {
      for (const key of active) { values[key] = ""; controls[key].value = ""; }
      showChips();
      changed({ ...values });
    }, { class: "plain", data: { chip: "all" } }));
  }
  showChips();
  return { bar, chips };
}
