// The page of an encounter: its photographs next to one candidate at equal scale, the decision, and all candidates.

import { api } from "./api.js";
import { drawBox } from "./boxing.js";
import { candidateList } from "./candidates.js";
import { actionBar, goBack, goNext } from "./deciding.js";
import { button, el, fill } from "./dom.js";
import { edit } from "./editing.js";
import { filterBar, initial, remember } from "./filters.js";
import { decisions } from "./history.js";
import { bindKeys } from "./keys.js";
import { fail } from "./messages.js";
import { photographs, putBack, regroup, withdraw } from "./moving.js";
import { guard, loadFacets, session } from "./session.js";
import { makeStage } from "./stage.js";
import { count, facts, moment, state, told } from "./words.js";

const KEYS = ["species", "side", "place", "since", "until"];
const K = 10;

export async function showEncounter(main, route, signal) {
  const [encounter, facets] = await Promise.all([api(`/encounters/${route.id}`, { signal }), loadFacets(signal)]);
  // State shared by the parts of the page. picked: the compared candidate; asked: the photograph chosen by the user;
  // flipped: another photograph of the candidate; asksBack: the server's question about a new individual.
  const view = { encounter, answer: null, picked: null, asked: null, flipped: null, asksBack: null, asking: false, filters: initial("candidates", route, KEYS),
    signal, facets, id: route.id };
  const path = `/encounter/${route.id}`;
  const node = { head: el("div", { class: "encounter-head" }), conflict: el("div", { id: "conflict", role: "alert" }),
    note: el("p", { id: "filters-note", class: "filters-note", role: "status" }), history: el("details", { id: "history" }) };
  const stage = makeStage(view);
  const actions = actionBar(view);
  const list = candidateList(view);
  let run = 0;

  view.pick = (candidate) => {
    view.picked = candidate;
    view.asked = view.flipped = view.asksBack = null;
    stage.show();
    list.mark();
    actions.show();
    stage.reveal();
  };
  view.withdraw = () => withdraw(view).catch(fail);
  view.ponder = () => {
    stage.show();
    stage.reveal();
    document.querySelector("#new-known button, #new-known select")?.focus({ preventScroll: true });
  };
  view.show = () => {
    const { encounter: now } = view;
    document.title = `${now.name} – ${session.catalogue.name}`;
    article.dataset.state = now.state;
    article.dataset.version = now.version;
    fill(node.head, head(view));
    stage.show();
    list.show();
    actions.show();
  };
  view.accept = (now) => { view.encounter = now; view.show(); showHistory().catch(fail); };
  view.conflict = (error) => {
    const { encounter: now, decision } = error.body;
    fill(node.conflict, el("div", { class: "notice" }, el("p", {}, el("b", { text: decision
      ? `${decision.user} decided in the meantime: ` : "Another user changed this encounter in the meantime." }),
    decision && `${told(decision)}, ${moment(decision.at)}.`),
    el("p", { text: "Your decision was not saved. The encounter below is up to date." }),
    button("Close", () => fill(node.conflict))));
    if (now) view.accept(now); else reload().catch(fail);
    node.conflict.scrollIntoView({ block: "center" });
  };
  view.ask = async () => {
    const mine = ++run;
    view.asking = true;
    view.answer = view.picked = view.flipped = view.asksBack = view.failed = null;
    filtersNote();
    view.show();
    try {
      const answer = await api(`/encounters/${route.id}/answers`, { method: "POST", body: { k: K, ...view.filters }, signal });
      if (mine === run) take(answer);
    } catch (error) {
      if (mine === run) { view.failed = error; fail(error); }
    } finally {
      if (mine === run) { view.asking = false; view.show(); }
    }
  };

  function take(answer) {
    view.answer = answer;
    view.failed = null;
    filtersNote();
    view.picked = answer.candidates.find((one) => !one.rejected) ?? answer.candidates[0] ?? null;
  }
  async function reload() { view.accept(await api(`/encounters/${route.id}`, { signal })); }
  async function showHistory() {
    const got = await api(`/audit-log?encounter_id=${route.id}&limit=50`, { signal });
    const open = node.history.open;
    fill(node.history, el("summary", {}, "History ", el("span", { class: "soft", text: count(got.decisions.length, "entry", "entries") })),
      decisions(got.decisions, async (result) => (result.encounter ? view.accept(result.encounter) : reload())));
    node.history.open = open;
    return got.decisions;
  }
  function filtersNote() {
    const active = KEYS.some((key) => view.filters[key]) && !view.answer?.note;
    node.note.textContent = active ? "Filters hide candidates but do not change probabilities: the right individual may be hidden." : "";
  }

  const keep = () => remember("candidates", view.filters, path, { answer: view.answer?.id && route.params.get("answer") });
  const { bar, chips } = filterBar("candidates", KEYS, view.filters, facets, (now) => {
    Object.assign(view.filters, now);
    route.params.delete("answer");
    keep();
    view.ask();
  });
  const article = el("article", { id: "encounter", class: "encounter" }, node.head, node.conflict, stage.node, actions.node,
    el("section", { class: "candidates", "aria-label": "Candidates" },
      el("div", { class: "section-head" }, el("h2", { text: "Candidates" }), el("span", { class: "soft", text: "from known photographs with" }),
        guard(button("Other individual …", () => view.someoneElse().catch(fail), { id: "someone-else" })), bar), chips, node.note, list.node),
    node.history);
  fill(main, article);
  signal.addEventListener("abort", stage.close);
  bindKeys(keys(view, stage, list, actions));
  filtersNote();
  keep();
  view.show();

  const past = showHistory();
  past.catch(fail);
  const wanted = Number(route.params.get("answer")) || null;
  if (wanted) { take(await api(`/answers/${wanted}`, { signal })); view.show(); }
  else if (["undecided", "unsure"].includes(encounter.state)) view.ask();
  else if (encounter.state !== "withdrawn") {
    const deciding = (await past).find((one) => one.answer_id && !one.undone_by && one.kind !== "reject");
    if (deciding) take(await api(`/answers/${deciding.answer_id}`, { signal }));
    const chosen = view.answer?.candidates.find((one) => (one.is_new ? encounter.state === "new" : one.individual.id === encounter.individual?.id));
    if (chosen) view.picked = chosen;
    view.show();
  }
}

function head(view) {
  const { encounter } = view;
  const known = facts(encounter);
  const decided = encounter.decided_by && encounter.state !== "undecided" && `${encounter.decided_by}, ${moment(encounter.decided_at)}`;
  return [
    el("div", {}, el("h1", {}, encounter.name, " ", el("span", { class: `state ${encounter.state}`, text: state(encounter.state) }), (view.answer?.no_animal ?? encounter.no_animal) && encounter.state !== "withdrawn" && el("span", { class: "state none", text: "Probably no animal" })),
      el("p", { class: "facts" }, known.length ? known.join(" · ") : "No date, place or species yet", " · ", count(encounter.photos.length, "photograph"))),
    encounter.individual && el("p", { class: "decided" }, encounter.state === "new" ? "New individual " : "This is ",
      el("a", { href: `#/individual/${encounter.individual.id}`, text: encounter.individual.name }), decided && el("small", { text: decided })),
    encounter.state === "unsure" && decided && el("p", { class: "decided soft" }, `Set aside by ${decided}`),
    encounter.state === "withdrawn" && el("div", { class: "notice", id: "withdrawn" }, el("p", { text: gone(encounter) }),
      encounter.photos.length > 0 && el("div", { class: "buttons" }, guard(button("Put back", () => putBack(view).catch(fail), { id: "put-back", class: "primary" })))),
    el("div", { class: "buttons tools" },
      guard(button("Edit", () => edit(view).catch(fail), { id: "edit", title: "Date, place, species, sides" })),
      encounter.photos.length > 0 && guard(button("Draw a box", () => drawBox(view).catch(fail), { id: "draw", title: "Draw the animal's bounding box on the photograph" })),
      encounter.photos.length > 0 && button("Photographs …", () => photographs(view).catch(fail), { id: "photographs", title: "Move photographs to another encounter, or withdraw them" }),
      encounter.state === "undecided" && encounter.photos.length > 1 && guard(button("Regroup …", () => again(view).catch(fail), { id: "regroup", title: "Split into encounters by day, burst or folder" })),
      encounter.state !== "withdrawn" && guard(button("Withdraw …", () => view.withdraw(), { id: "withdraw", title: "Remove from the queue: a boat, empty sea, a mistake" })),
      encounter.state !== "withdrawn" && button(view.answer || view.asking ? "Rank again" : "Rank", () => view.ask(), { id: "ask", disabled: view.asking, title: "Rank the known individuals as candidates" }))];
}

function gone({ withdrawn, photos }) {
  if (!photos.length) return "It has no photographs left.";
  return withdrawn ? `Withdrawn: ${withdrawn.reason}. ${withdrawn.user}, ${moment(withdrawn.at)}` : "Withdrawn.";
}

/** Regroups the photographs of this encounter, and shows the result. */
async function again(view) {
  const result = await regroup([view.encounter]);
  if (!result?.decision) return;
  if (result.groups.length > 1) location.hash = "#/queue"; else dispatchEvent(new CustomEvent("catalogue:again"));
}

function keys(view, stage, list, actions) {
  let last = 0;
  const move = (step) => {
    if (list.step(step) || step < 0) return;
    if (Date.now() - last < 1500) goNext(view).catch(fail);  // at the last candidate, a second press moves on
    last = Date.now();
  };
  const digits = [..."123456789"];
  return [
    { keys: ["ArrowRight", "ArrowDown"], label: "Next candidate; at the last one, twice: next encounter", repeats: true, run: () => move(1) },
    { keys: ["ArrowLeft", "ArrowUp"], label: "Previous candidate", repeats: true, run: () => move(-1) },
    { keys: digits, shown: ["1", "9"], label: "Candidate at this rank", run: (name) => list.rank(Number(name)) },
    { keys: ["c"], label: "Confirm: it is this individual", run: () => actions.press("confirm") },
    { keys: ["r"], label: "Reject: it is not this individual", run: () => actions.press("reject") },
    { keys: ["n"], label: "New individual", run: () => actions.press("new") },
    { keys: ["o"], label: "Other individual, by name", run: () => actions.press("someone") },
    { keys: ["u"], label: "Unsure: set aside", run: () => actions.press("unsure") },
    { keys: ["s", "Shift+ArrowRight"], label: "Next undecided encounter", run: () => goNext(view).catch(fail) },
    { keys: ["b", "Ctrl+z"], label: "Undo the last decision and return to its encounter", run: () => goBack().catch(fail) },
    { keys: ["h"], label: "Heat maps on or off", run: () => stage.toggleHeat() },
    { keys: ["z"], label: "Zoom both photographs", run: () => stage.zoom() },
    { keys: ["p"], label: "Next photograph of this encounter", run: () => stage.turn() },
    { keys: ["k"], label: "Next photograph of the candidate, same side first", repeats: true, run: () => stage.flip(1).catch(fail) },
    { keys: ["j"], label: "Previous photograph of the candidate", repeats: true, run: () => stage.flip(-1).catch(fail) },
  ];
}
