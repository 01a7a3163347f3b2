// The queue: undecided encounters, oldest first.

import { api, query } from "./api.js";
import { button, cropImage, el, fill } from "./dom.js";
import { filterBar, initial, remember } from "./filters.js";
import { fail } from "./messages.js";
import { regroup, withdrawMany } from "./moving.js";
import { loadFacets, may, session } from "./session.js";
import { count, day, side, species, state, STATES } from "./words.js";

const KEYS = ["species", "side", "place", "since", "until", "q"];
const ALL = ["state", "no_animal", ...KEYS];
const ORDER = "happywhale.order";

/** The current filters; the state "all" is every state, "" the undecided ones. */
const asked = (values) => ({ ...values, state: every(values) ? "" : values.state || "undecided" });
const every = (values) => ["all", "any"].includes(values.state);  // "any": in older links

export async function showQueue(main, route, signal) {
  const values = initial("queue", route, ALL);
  if (values.state && !every(values) && !(values.state in STATES)) values.state = "";
  const facets = await loadFacets(signal);
  const total = el("p", { class: "total", id: "total", role: "status", "aria-live": "polite" });
  const list = el("ol", { class: "encounters", id: "queue" });
  const more = button("More", () => load(false), { id: "more", hidden: true });
  const empty = el("div", { class: "empty", hidden: true });
  const chosen = new Map();  // chosen encounters, in selection mode
  let choosing = false;
  let cursor = null;
  let run = 0;

  async function load(fresh) {
    const mine = fresh ? ++run : run;
    if (fresh) cursor = "";
    more.disabled = true;
    try {
      const got = await api(`/encounters${query({ ...asked(values), after: cursor, limit: 48 })}`, { signal });
      if (mine !== run) return;
      if (fresh) { list.replaceChildren(); chosen.clear(); tick(); }
      list.append(...got.encounters.map((one) => item(one, pick)));
      cursor = got.next;
      total.textContent = got.total ? count(got.total, "encounter") : "";
      empty.hidden = got.total > 0;
      if (!got.total) fill(empty, nothing(values, bar, change, facets));
      select.hidden = !got.total || !may("decide");
      more.hidden = !cursor;
    } catch (error) {
      fail(error);
    } finally {
      more.disabled = false;
    }
  }

  const pick = (encounter, on) => { if (on) chosen.set(encounter.id, encounter); else chosen.delete(encounter.id); tick(); };
  const select = button("Select", () => { choosing = !choosing; if (!choosing) list.querySelectorAll("[data-pick]:checked").forEach((box) => box.click()); tick(); }, { id: "select", class: "quiet", "aria-pressed": "false", title: "Choose encounters to regroup or withdraw", hidden: true });
  const none = button("", () => { values.no_animal = values.no_animal ? "" : "true"; mark(); change(); }, { id: "no-animal-only", class: "quiet", title: "Encounters that probably show no animal; check, then withdraw them" });
  const mark = () => { none.hidden = !facets.no_animal && !values.no_animal; none.setAttribute("aria-pressed", String(Boolean(values.no_animal))); none.firstChild.textContent = `Probably no animal ${facets.no_animal ?? ""}`; };
  const number = el("span", { role: "status" });
  const acts = [button("Regroup …", () => act(regroup), { id: "group-chosen" }), button("Withdraw …", () => act(withdrawMany), { id: "withdraw-chosen" })];
  const tools = el("div", { class: "buttons choosing-tools" }, button("All shown", () => list.querySelectorAll("[data-pick]:not(:checked)").forEach((box) => box.click()), { id: "choose-all", class: "quiet" }), acts, number);
  async function act(action) {
    try {
      if (await action([...chosen.values()])) await load(true);
    } catch (error) {
      fail(error);
    }
  }
  function tick() {
    list.classList.toggle("choosing", choosing);
    select.setAttribute("aria-pressed", String(choosing));
    select.firstChild.textContent = choosing ? "Done" : "Select";
    tools.hidden = !choosing;
    number.textContent = chosen.size ? `${count(chosen.size, "encounter")} chosen` : "Choose encounters.";
    const all = [...chosen.values()];
    acts[0].disabled = !all.length || all.some((one) => one.state !== "undecided");
    acts[0].title = all.some((one) => one.state !== "undecided") ? "Only undecided encounters can be regrouped." : "";
    acts[1].disabled = !all.length || all.some((one) => one.state === "withdrawn");
  }
  const change = () => { remember("queue", values, "/queue"); load(true); };
  const { bar, chips } = filterBar("queue", KEYS, values, facets, (now) => { Object.assign(values, now); change(); });
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Queue" }), total, select),
    el("div", { class: "row states" }, states(values, facets, change), none), bar, chips, tools, empty, list, el("div", { class: "more" }, more));
  remember("queue", values, "/queue");
  const seen = new IntersectionObserver((entries) => { if (entries[0].isIntersecting && !more.hidden && !more.disabled) load(false); },
    { rootMargin: "400px" });
  seen.observe(more.parentElement);
  signal.addEventListener("abort", () => seen.disconnect());
  tick();
  mark();
  await load(true);
}

/** What to do when the list is empty. */
function nothing(values, bar, change, facets) {
  const shown = Object.values(facets.states).reduce((sum, number) => sum + number, 0);
  const add = may("decide") && el("a", { class: "button primary", href: "#/add", text: "Add photographs" });
  const all = button("Show all encounters", () => { values.state = "all"; document.querySelector('#queue-state [value="all"]').checked = true; change(); }, { id: "show-all" });
  const clear = button("Clear the filters", () => { for (const key of ["no_animal", ...KEYS]) values[key] = ""; remember("queue", values, "/queue"); dispatchEvent(new CustomEvent("catalogue:again")); }, { id: "clear-filters", class: "primary" });
  if (values.no_animal || KEYS.some((key) => values[key])) return [el("p", { text: "No encounter matches these filters." }), el("div", { class: "buttons" }, clear, !every(values) && all)];
  if (!shown && !session.catalogue.photos) return [el("p", { text: "The catalogue is empty." }), el("div", { class: "buttons" }, add)];
  if (every(values)) return [el("p", { text: "There are no encounters yet." }), el("div", { class: "buttons" }, add)];
  return [el("p", { text: values.state ? `No encounter is ${state(values.state).toLowerCase()}.` : "All encounters are decided." }), el("div", { class: "buttons" }, all, !values.state && add)];
}

function states(values, facets, change) {
  const now = every(values) ? "all" : values.state || "undecided";
  return el("fieldset", { class: "segments", id: "queue-state" }, el("legend", { class: "hidden", text: "State" }),
    [...Object.keys(STATES), "all"].filter((name) => name !== "withdrawn" || facets.states.withdrawn || now === name).map((name) => el("label", {},
      el("input", { type: "radio", name: "state", value: name, checked: name === now,
        onChange: () => { values.state = name === "undecided" ? "" : name; change(); } }),
      el("span", {}, name === "all" ? "All" : state(name), facets.states[name] !== undefined && el("b", { text: facets.states[name] })))));
}

function item(encounter, pick) {
  const [first] = encounter.photos;
  const number = encounter.photos.length;
  const facts = [encounter.place, [species(encounter.species), side(encounter.side)].filter(Boolean).join(" · ")];
  const box = el("input", { type: "checkbox", class: "pick", data: { pick: encounter.id }, "aria-label": `Choose ${encounter.name}`, onChange: () => pick(encounter, box.checked) });
  return el("li", {}, box, el("a", { class: "card", href: `#/encounter/${encounter.id}`, data: { encounter: encounter.id } },
    el("div", { class: "thumb" }, first ? cropImage(first, 160, "") : null, number > 1 && el("span", { class: "badge", text: number, "aria-hidden": "true" })),
    el("div", { class: "about" },
      el("h2", { text: encounter.date ? day(encounter.date) : "No date" }),
      facts.filter(Boolean).map((text) => el("p", { text })),
      el("p", { class: "soft" }, `${encounter.name} · ${count(number, "photograph")}`),
      encounter.no_animal && encounter.state !== "withdrawn" && el("p", {}, el("span", { class: "state none", text: "Probably no animal" })),
      encounter.state !== "undecided" && el("p", {}, el("span", { class: `state ${encounter.state}`, text: state(encounter.state) }),
        encounter.individual && el("b", { text: ` ${encounter.individual.name}` })))));
}

/** The next undecided encounter that passes the queue's filters, or null.
 *  A decided encounter is no longer in the list, so its position comes from the stored order. */
export async function nextUndecided(id, signal) {
  const route = { params: new URLSearchParams() };
  const filters = { ...initial("queue", route, ALL), state: "undecided" };
  const before = JSON.parse(sessionStorage.getItem(ORDER) ?? "[]");
  const known = new Set(before.slice(before.indexOf(id) + 1));
  const order = [];
  let cursor = "";
  let next = null;
  for (let pages = 0; pages < 20 && cursor !== null; pages += 1) {
    const got = await api(`/encounters${query({ ...filters, after: cursor, limit: 200 })}`, { signal });
    order.push(...got.encounters.map((encounter) => encounter.id));
    cursor = got.next;
    const here = order.indexOf(id);
    next = here >= 0 ? order[here + 1] : before.includes(id) ? order.find((one) => known.has(one)) : undefined;
    if (next !== undefined) break;
  }
  const kept = order.includes(id) ? order : [...before.slice(0, before.indexOf(id) + 1), ...order.filter((one) => !before.slice(0, before.indexOf(id)).includes(one))];
  sessionStorage.setItem(ORDER, JSON.stringify(kept.slice(0, 2000)));
  return next ?? order.find((one) => one !== id) ?? null;
}
