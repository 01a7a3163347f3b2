// Decisions: confirm, reject, new, unsure; undo; moving to the next undecided encounter.

import { api, query } from "./api.js";
import { chooseIndividual } from "./choosing.js";
import { button, el, fill } from "./dom.js";
import { undo } from "./history.js";
import { fail, say } from "./messages.js";
import { nextUndecided } from "./queue.js";
import { changed, guard, may } from "./session.js";

const made = [];  // decisions of this visit, for undo: {id, encounter}

addEventListener("catalogue:undone", (event) => {
  const at = made.findIndex((one) => one.id === event.detail);
  if (at >= 0) made.splice(at, 1);
});

/** Shows a message with an Undo button for this decision, and records the decision for later undo. */
export function remembered(decision, encounter, text) {
  if (!decision) return void say(text);
  const one = { id: decision.id, encounter };
  made.push(one);
  say(text, { about: decision.id, action: { label: "Undo", run: () => takeBack(one).catch(fail) } });
}

/** The buttons of an encounter; `press` clicks one unless it is disabled. */
export function actionBar(view) {
  const note = el("input", { type: "text", id: "note", maxlength: 500, placeholder: "Note (optional)", "aria-label": "Note on the decision", autocomplete: "off" });
  const main = el("div", { class: "buttons" });
  const node = el("div", { class: "actions", role: "group", "aria-label": "Decision" }, main, guard(note));
  let buttons = {};
  let busy = false;

  async function decide(kind, { individual = null, name = null, ...more } = {}) {
    if (busy || !may("decide")) return;
    busy = true;
    show();
    const { encounter, answer } = view;
    const body = { kind, individual_id: individual?.id ?? null, name: name || null, answer_id: answer?.id ?? null, version: encounter.version, note: note.value.trim(), ...more };
    try {
      const result = await api(`/encounters/${encounter.id}/decisions`, { method: "POST", body });
      note.value = "";
      view.asksBack = null;
      changed();
      remembered(result.decision, encounter.id, outcomeText(kind, result, individual));
      if (kind === "reject") rejected(result, individual);
      else await goNext(view);
    } catch (error) {
      const { individual: known, species, alike, encounter: now } = error.body ?? {};
      if (error.status === 409 && kind === "new" && (known || species)) { view.asksBack = { text: error.message, known, species, alike, more }; view.ponder(); }
      else if (error.status === 409 && now) view.conflict(error);
      else fail(error);
    } finally {
      busy = false;
      if (!view.signal.aborted) show();
    }
  }

  function rejected(result, individual) {
    const list = view.answer?.candidates ?? [];
    for (const one of list) if (one.individual?.id === individual.id) one.rejected = true;
    const after = list.slice(list.indexOf(view.picked) + 1).find((one) => !one.rejected);
    if (after) view.picked = after;
    view.accept(result.encounter);
  }

  const confirm = () => (view.picked?.is_new ? view.decideNew() : decide("confirm", { individual: view.picked.individual }));
  view.decideNew = (more = {}) => decide("new", { name: view.picked?.proposed?.trim(), ...more });
  view.decideKnown = (individual) => decide("confirm", { individual });

  async function makeNew() {
    let one = view.answer?.candidates.find((candidate) => candidate.is_new);
    if (!one) {
      const { name } = await api(`/next-id${query({ species: view.encounter.species })}`, { signal: view.signal });
      one = { rank: null, is_new: true, individual: null, proposed: name, probability: null, in_set: false, photo: null, query_photo: null, photos: 0 };
    }
    view.pick(one);
    const field = document.getElementById("new-name");
    field?.focus();
    field?.select();
  }

  /** Lets the user choose any individual of the catalogue; it is then treated like a candidate. */
  view.someoneElse = async () => {
    const individual = await chooseIndividual("Who is it?", { kind: view.encounter.species, id: "someone-q" });
    if (!individual || view.signal.aborted) return;
    const listed = view.answer?.candidates.find((one) => one.individual?.id === individual.id);
    if (listed) return void view.pick(listed);
    const { photos } = await api(`/individuals/${individual.id}/photos${query({ side: view.askedPhoto()?.side, limit: 1 })}`, { signal: view.signal });
    view.pick({ rank: null, is_new: false, individual, proposed: "", score: null, probability: null, in_set: false, rejected: false, photo: photos[0] ?? null, query_photo: null, photos: individual.photos });
    document.getElementById("confirm")?.focus();
  };

  function show() {
    const one = view.picked;
    const name = one?.is_new ? "new" : one?.individual?.name;
    const same = one && !one.is_new && view.encounter.individual?.id === one.individual.id;
    const open = view.encounter.state !== "withdrawn";
    const make = (id, text, key, run, on, props = {}) => {
      const control = button(text, run, { id, key, ...props });
      if (id !== "next" && id !== "back") { guard(control); on &&= open; }
      if (!on || busy) control.disabled = true;
      return [id, control];
    };
    buttons = Object.fromEntries([
      make("confirm", name ? `Confirm ${name}` : "Confirm", "c", confirm, one && !same, { class: "primary", title: one?.is_new ? "It is a new individual" : name ? `It is ${name}` : null }),
      make("reject", name && !one.is_new ? `Not ${name}` : "Reject", "r", () => decide("reject", { individual: one.individual }), one && !one.is_new && !one.rejected),
      make("new", "New", "n", () => makeNew().catch(fail), !view.asking, { title: "A new individual, not in the catalogue" }),
      make("someone", "Other …", "o", () => view.someoneElse().catch(fail), true, { title: "Choose another individual by name" }),
      make("unsure", "Unsure", "u", () => decide("unsure"), view.encounter.state !== "unsure", { title: "Set aside under “Unsure”" }),
      make("next", "Next", "s", () => goNext(view).catch(fail), true, { title: "Next undecided encounter", class: "quiet" }),
      make("back", "Undo", "b", () => goBack().catch(fail), made.length > 0, { title: "Undo the last decision and return to its encounter", class: "quiet" }),
    ]);
    const held = main.contains(document.activeElement) ? document.activeElement.id : "";
    fill(main, Object.values(buttons));
    if (held) document.getElementById(held)?.focus({ preventScroll: true });
  }

  return { node, show, press: (id) => { if (!buttons[id]?.disabled) buttons[id]?.click(); } };
}

function outcomeText(kind, { encounter }, individual) {
  switch (kind) {
    case "confirm": return `${encounter.name} is ${individual.name}.`;
    case "reject": return `${encounter.name} is not ${individual.name}.`;
    case "new": return `${encounter.name} is a new individual, ${encounter.individual?.name ?? ""}.`;
    default: return `${encounter.name} is set aside as unsure.`;
  }
}

/** Moves to the next undecided encounter, or to the queue if none is left. */
export async function goNext(view) {
  const id = await nextUndecided(view.id, view.signal);
  if (view.signal.aborted) return;
  if (id === null) {
    if (!document.querySelector('#messages [data-about]:not([data-about=""])')) say("No other encounter is undecided.");
    location.hash = "#/queue";
  } else {
    location.hash = `#/encounter/${id}`;
  }
}

/** Undoes the last decision of this visit, and shows its encounter. */
export async function goBack() {
  const last = made.at(-1);
  if (!last) return void say("No decision on this visit to undo. Undo earlier decisions in an encounter's history or in the audit log.");
  await takeBack(last);
}

/** Undoes a decision, and shows its encounter. */
async function takeBack(one) {
  await undo(one.id);
  const there = one.encounter ? `#/encounter/${one.encounter}` : location.hash.split("?")[0];
  if (location.hash.split("?")[0] === there) dispatchEvent(new CustomEvent("catalogue:again"));
  else location.hash = there;
}
