// The list of candidates: the candidate set with its measured coverage, then the less likely candidates.

import { button, cropImage, el, fill } from "./dom.js";
import { guard } from "./session.js";
import { percent, count, day, promise, species } from "./words.js";

/** The list; `show` draws it, `mark` highlights the compared candidate, `step` and `rank` choose another. */
export function candidateList(view) {
  const node = el("div", { id: "candidates", "aria-live": "off" });

  function show() {
    const { answer } = view;
    if (!answer) return void fill(node, waiting(view));
    const inside = answer.candidates.filter((one) => one.in_set);
    const outside = answer.candidates.filter((one) => !one.in_set);
    fill(node, answer.no_animal && noAnimal(view),
      answer.note && !answer.no_animal && el("p", { class: "filters-note", text: capital(answer.note) }),
      !answer.candidates.length && el("p", { class: "soft", text: "No candidates: no known individual matches." }),
      el("p", { class: `promise ${answer.promised ? "soft" : "filters-note"}`, text: promise(answer, inside.length) }),
      inside.length > 0 && group("Candidate set", inside, "inside"),
      outside.length > 0 && group(inside.length ? "Less likely" : "Candidates", outside, "outside"),
      kinds(answer) && el("p", { class: "soft species", id: "answer-species", text: `Species, over all candidates: ${kinds(answer)}` }),
      answer.other_probability > 0 && el("p", { class: "soft other", text: `Probability of a known individual that is not listed: ${percent(answer.other_probability)}` }));
    mark();
  }

  const group = (title, list, kind) => el("section", { class: `group ${kind}` }, el("h3", {}, title, " ", el("span", { class: "soft", text: list.length })),
    el("ol", {}, list.map((one) => el("li", {}, item(one, view)))));

  function mark() {
    for (const one of node.querySelectorAll("[data-candidate]")) {
      const on = Number(one.dataset.candidate) === view.picked?.rank;
      if (on) one.setAttribute("aria-current", "true"); else one.removeAttribute("aria-current");
    }
  }

  function rank(number) {
    const candidate = view.answer?.candidates.find((one) => one.rank === number);
    if (candidate) view.pick(candidate);
    return Boolean(candidate);
  }

  function step(by) {
    const list = view.answer?.candidates ?? [];
    const next = list[list.indexOf(view.picked) + by];
    if (next) view.pick(next);
    return Boolean(next);
  }

  return { node, show, mark, rank, step };
}

/** The three likeliest species, each with its probability. */
const kinds = (answer) => (answer.species ?? []).slice(0, 3).map((one) => `${species(one.name)} ${percent(one.probability)}`).join(", ");

const capital = (text) => text.replace(/^./, (letter) => letter.toUpperCase());

/** The notice for photographs that probably show no animal; the user can still decide otherwise. */
function noAnimal(view) {
  return el("div", { class: "notice", id: "no-animal" }, el("p", {}, el("b", { text: `${capital(view.answer.note || "probably no animal")}.` })),
    view.encounter.state !== "withdrawn" && guard(button("Withdraw …", () => view.withdraw(), { data: { withdraw: "" } })));
}

function item(one, view) {
  const name = one.is_new ? "New individual" : one.individual.name;
  const from = one.photo ? [day(one.photo.date), one.photo.place].filter(Boolean).join(" · ") : "";
  return el("button", { type: "button", class: `candidate${one.rejected ? " rejected" : ""}`, data: { candidate: one.rank, new: one.is_new ? "1" : "" },
    onClick: () => view.pick(one) },
  el("span", { class: "thumb" }, one.photo ? cropImage(one.photo, 160, "") : el("span", { class: "plus", text: one.is_new ? "+" : "?", "aria-hidden": "true" })),
  el("span", { class: "about" },
    el("span", { class: "line" }, el("span", { class: "rank", text: one.rank }), el("b", { text: name }),
      one.rejected && el("span", { class: "state rejected", text: "rejected" }), el("span", { class: "probability", text: percent(one.probability) })),
    el("span", { class: "bar", style: { "--probability": String(one.probability ?? 0) }, "aria-hidden": "true" }),
    one.is_new ? el("small", { text: [`would be ${one.proposed ?? "a name you choose"}`, one.species && `${species(one.species.name)} ${percent(one.species.probability)}`].filter(Boolean).join(" · ") }) : [
      from && el("small", { text: from }), one.photo && el("small", { class: "file", text: one.photo.name, title: one.photo.name }),
      el("small", { text: count(one.photos, "known photograph") })]));
}

function waiting(view) {
  if (view.asking) return el("p", { class: "soft loading", role: "status", text: "Ranking candidates …" });
  if (view.failed) return el("div", { class: "empty", role: "alert" }, el("p", { class: "error", text: view.failed.message }), button("Try again", () => view.ask(), { class: "primary" }));
  return el("p", { class: "soft", text: view.encounter.individual ? "This encounter is decided. Rank candidates to see alternatives." : "No candidates ranked yet." });
}
