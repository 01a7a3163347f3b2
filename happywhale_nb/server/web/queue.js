// The queue: encounters that wait for a decision, oldest first.

import { api, query } from "./api.js";
import { button, cropImage, el, fill } from "./dom.js";
import { filterBar, initial, remember } from "./filters.js";
import { fail } from "./messages.js";
import { loadFacets } from "./session.js";
import { count, day, side, species, state, STATES } from "./words.js";

const KEYS = ["species", "side", "place", "since", "until", "q"];
const ALL = ["state", ...KEYS];
const ORDER = "happywhale.order";

/** What the queue is filtered by now; "any" is every state, "" the undecided ones. */
const asked = (values) => ({ ...values, state: values.state === "any" ? "" : values.state || "undecided" });

export async function showQueue(main, route, signal) {
  const values = initial("queue", route, ALL);
  const facets = await loadFacets(signal);
  const total = el("p", { class: "total", id: "total", role: "status", "aria-live": "polite" });
  const list = el("ol", { class: "encounters", id: "queue" });
  const more = button("More", () => load(false), { id: "more", hidden: true });
  let cursor = null;
  let run = 0;

  async function load(fresh) {
    const mine = fresh ? ++run : run;
    if (fresh) cursor = "";
    more.disabled = true;
    try {
      const got = await api(`/encounters${query({ ...asked(values), after: cursor, limit: 48 })}`, { signal });
      if (mine !== run) return;
      if (fresh) list.replaceChildren();
      list.append(...got.encounters.map(item));
      cursor = got.next;
      total.textContent = got.total ? count(got.total, "encounter") : nothing(values);
      more.hidden = !cursor;
    } catch (error) {
      fail(error);
    } finally {
      more.disabled = false;
    }
  }

  const change = () => { remember("queue", values, "/queue"); load(true); };
  const { bar, chips } = filterBar("queue", KEYS, values, facets, (now) => { Object.assign(values, now); change(); });
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Queue" }), total),
    states(values, facets, change), bar, chips, list, el("div", { class: "more" }, more));
  remember("queue", values, "/queue");
  const seen = new IntersectionObserver((entries) => { if (entries[0].isIntersecting && !more.hidden && !more.disabled) load(false); },
    { rootMargin: "400px" });
  seen.observe(more.parentElement);
  signal.addEventListener("abort", () => seen.disconnect());
  await load(true);
}

function nothing(values) {
  const filtered = KEYS.some((key) => values[key]);
  if (filtered) return "No encounter fits these filters.";
  return values.state ? "There are none." : "Nothing is left to decide.";
}

function states(values, facets, change) {
  const now = values.state || "undecided";
  return el("fieldset", { class: "segments", id: "queue-state" }, el("legend", { class: "hidden", text: "State" }),
    [...Object.keys(STATES), "any"].map((name) => el("label", {},
      el("input", { type: "radio", name: "state", value: name, checked: name === now,
        onChange: () => { values.state = name === "undecided" ? "" : name; change(); } }),
      el("span", {}, name === "any" ? "All" : state(name), facets.states[name] !== undefined && el("b", { text: facets.states[name] })))));
}

function item(encounter) {
  const [first] = encounter.photos;
  const number = encounter.photos.length;
  const facts = [encounter.place, [species(encounter.species), side(encounter.side)].filter(Boolean).join(" · ")];
  return el("li", {}, el("a", { class: "card", href: `#/encounter/${encounter.id}`, data: { encounter: encounter.id } },
    el("div", { class: "thumb" }, first ? cropImage(first, 160, "") : null, number > 1 && el("span", { class: "badge", text: number, "aria-hidden": "true" })),
    el("div", { class: "about" },
      el("h2", { text: encounter.date ? day(encounter.date) : "No date" }),
      facts.filter(Boolean).map((text) => el("p", { text })),
      el("p", { class: "soft" }, `${encounter.name} · ${count(number, "photograph")}`),
      encounter.state !== "undecided" && el("p", {}, el("span", { class: `state ${encounter.state}`, text: state(encounter.state) }),
        encounter.individual && el("b", { text: ` ${encounter.individual.name}` })))));
}

/** The encounter after this one among the undecided ones that the queue's filters let through, or null.
 *  After a decision the encounter is no longer in the list; the order seen before says what came after it. */
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
