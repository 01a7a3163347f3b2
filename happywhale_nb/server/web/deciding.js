// Decisions: confirm, reject, new, unsure; undo; and on to the next undecided encounter.

import { api, query } from "./api.js";
import { button, el, fill } from "./dom.js";
import { undo } from "./history.js";
import { fail, say } from "./messages.js";
import { nextUndecided } from "./queue.js";
import { changed, guard, may } from "./session.js";

const made = [];  // this visit's decisions, for the way back: {id, encounter}

/** The buttons of an encounter; `press` does what a button does, and nothing when it is disabled. */
export function actionBar(view) {
  const note = el("input", { type: "text", id: "note", maxlength: 500, placeholder: "Note (optional)", "aria-label": "Note on the decision", autocomplete: "off" });
  const main = el("div", { class: "buttons" });
  const node = el("div", { class: "actions", role: "group", "aria-label": "Decision" }, main, guard(note));
  let buttons = {};
  let busy = false;

  async function decide(kind, { individual = null, name = null } = {}) {
    if (busy || !may("review")) return;
    busy = true;
    show();
    const { encounter, answer } = view;
    const body = { kind, individual_id: individual?.id ?? null, name: name || null, answer_id: answer?.id ?? null, version: encounter.version, note: note.value.trim() };
    try {
      const result = await api(`/encounters/${encounter.id}/decisions`, { method: "POST", body });
      made.push({ id: result.decision.id, encounter: encounter.id });
      note.value = "";
      changed();
      say(outcomeText(kind, result, individual), { action: { label: "Undo", key: "b", run: () => goBack().catch(fail) } });
      if (kind === "reject") rejected(result, individual);
      else await goNext(view);
    } catch (error) {
      if (error.status === 409 && error.body.encounter) view.conflict(error);
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
  view.decideNew = () => decide("new", { name: view.picked?.proposed?.trim() });

  async function makeNew() {
    let one = view.answer?.candidates.find((candidate) => candidate.is_new);
    if (!one) {
      const { name } = await api(`/next-id${query({ species: view.encounter.species })}`, { signal: view.signal });
      one = { rank: null, is_new: true, individual: null, proposed: name, probability: null, in_set: false, photo: null, query_photo: null, photos: 0 };
    }
    view.pick(one, { focus: true });
    const field = document.getElementById("new-name");
    field?.focus();
    field?.select();
  }

  function show() {
    const one = view.picked;
    const name = one?.is_new ? "new individual" : one?.individual?.name;
    const same = one && !one.is_new && view.encounter.individual?.id === one.individual.id;
    const make = (id, text, key, run, on, props = {}) => {
      const control = button(text, run, { id, key, ...props });
      if (id !== "next" && id !== "back") guard(control);
      if (!on || busy) control.disabled = true;
      return [id, control];
    };
    buttons = Object.fromEntries([
      make("confirm", name ? `Confirm ${name}` : "Confirm", "c", confirm, one && !same, { class: "primary" }),
      make("reject", name && !one.is_new ? `Not ${name}` : "Reject", "r", () => decide("reject", { individual: one.individual }), one && !one.is_new && !one.rejected),
      make("new", "New", "n", () => makeNew().catch(fail), !view.asking, { title: "A new individual: nobody of the catalogue" }),
      make("unsure", "Unsure", "u", () => decide("unsure"), view.encounter.state !== "unsure", { title: "Set aside; it stays among the unsure ones" }),
      make("next", "Next", "s", () => goNext(view).catch(fail), true, { title: "Next undecided encounter", class: "quiet" }),
      make("back", "Undo", "b", () => goBack().catch(fail), made.length > 0, { title: "Undo the last decision and go back to it", class: "quiet" }),
    ]);
    const held = main.contains(document.activeElement) ? document.activeElement.id : "";
    fill(main, Object.values(buttons));
    if (held) document.getElementById(held)?.focus();
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

/** On to the next undecided encounter, or to the queue when none is left. */
export async function goNext(view) {
  const id = await nextUndecided(view.id, view.signal);
  if (view.signal.aborted) return;
  if (id === null) {
    say("No other encounter waits for a decision.");
    location.hash = "#/queue";
  } else {
    location.hash = `#/encounter/${id}`;
  }
}

/** Undoes the last decision of this visit and shows its encounter; without one, goes back. */
export async function goBack() {
  const last = made.at(-1);
  if (!last) return void history.back();
  try {
    await undo(last.id);
  } finally {
    made.pop();  // what cannot be undone once cannot be undone later either
  }
  const there = `#/encounter/${last.encounter}`;
  if (location.hash.split("?")[0] === there) dispatchEvent(new CustomEvent("catalogue:again"));
  else location.hash = there;
}
