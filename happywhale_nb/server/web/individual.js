// One individual: its photographs, encounters in time, and what was decided about it.

import { api, query } from "./api.js";
import { button, cropImage, el, field, fill, later } from "./dom.js";
import { decisions } from "./history.js";
import { dialog, fail, say } from "./messages.js";
import { cover } from "./individuals.js";
import { changed, guard } from "./session.js";
import { count, day, side, species, state } from "./words.js";

export async function showIndividual(main, route, signal) {
  const again = async () => {
    const individual = await api(`/individuals/${route.id}`, { signal });
    if (!signal.aborted) fill(main, page(individual, again));
  };
  await again();
}

function page(individual, again) {
  const encounters = individual.encounters;
  const chosen = new Set();
  const split = guard(button("Split off", () => splitOff(individual, [...chosen], again), { id: "split" }));
  split.disabled = true;
  const choose = (id, on) => {
    if (on) chosen.add(id); else chosen.delete(id);
    const part = chosen.size > 0 && chosen.size < encounters.length;
    if (!split.title || part) split.disabled = guardDisabled || !part;
    splitNote.textContent = !chosen.size ? "Choose encounters to split them off." : part ? `${count(chosen.size, "encounter")} chosen.` : "All are chosen: one must stay.";
  };
  const guardDisabled = Boolean(split.title);
  const splitNote = el("span", { class: "soft", role: "status", text: "Choose encounters to split them off." });
  const photos = encounters.reduce((sum, one) => sum + one.photos.length, 0);
  const span = individual.first && (individual.first === individual.last ? `met on ${day(individual.first)}` : `met from ${day(individual.first)} to ${day(individual.last)}`);
  return [
    el("div", { class: "encounter-head" },
      el("div", {}, el("h1", { text: individual.name }),
        el("p", { class: "facts", text: [species(individual.species), count(encounters.length, "encounter"), count(photos, "photograph"), span].filter(Boolean).join(" · ") })),
      el("div", { class: "buttons" }, guard(button("Rename", () => rename(individual, again), { id: "rename" })),
        guard(button("Merge into …", () => merge(individual), { id: "merge" })))),
    individual.merged_into && el("div", { class: "notice" }, el("p", {}, "It was merged into ", el("a", { href: `#/individual/${individual.merged_into.id}`, text: individual.merged_into.name }), ".")),
    el("section", { "aria-label": "Encounters" },
      el("div", { class: "section-head" }, el("h2", { text: "Encounters" }), encounters.length > 1 && [split, splitNote]),
      el("ol", { class: "timeline" }, encounters.map((one) => met(one, encounters.length > 1 && choose)))),
    el("section", { id: "history", "aria-label": "History" }, el("h2", { text: "History" }),
      individual.history.length ? decisions(individual.history, again) : el("p", { class: "soft", text: "Nothing was decided about it here." })),
  ];
}

function met(encounter, choose) {
  const link = el("a", { href: `#/encounter/${encounter.id}`, text: encounter.name });
  const facts = [encounter.place, side(encounter.side), encounter.state !== "confirmed" ? state(encounter.state) : "", encounter.decided_by && `decided by ${encounter.decided_by}`].filter(Boolean).join(" · ");
  const box = choose && guard(el("input", { type: "checkbox", data: { split: encounter.id }, onChange: () => choose(encounter.id, box.checked) }));
  return el("li", {}, el("div", { class: "met" }, box ? el("label", { class: "check", title: "Choose to split off" }, box, el("b", { text: encounter.date ? day(encounter.date) : "No date" }))
    : el("b", { text: encounter.date ? day(encounter.date) : "No date" }), el("p", { class: "soft" }, link, facts && ` · ${facts}`)),
  el("div", { class: "shots" }, encounter.photos.map((photo) => el("a", { href: `#/encounter/${encounter.id}`, title: photo.name }, cropImage(photo, 256, photo.name)))));
}

async function rename(individual, again) {
  const name = el("input", { type: "text", value: individual.name, required: true, maxlength: 80, autofocus: true, autocomplete: "off", spellcheck: "false" });
  const given = await dialog(`Rename ${individual.name}`, (close) => el("form", { onSubmit: (event) => { event.preventDefault(); close(name.value.trim()); } },
    field("New name", name), el("div", { class: "buttons" }, button("Cancel", () => close()), button("Rename", null, { type: "submit", class: "primary", id: "dialog-yes" }))));
  if (!given || given === individual.name) return;
  await doing(() => api(`/individuals/${individual.id}`, { method: "PATCH", body: { name: given } }), () => `${individual.name} is now ${given}.`, again);
}

async function splitOff(individual, ids, again) {
  const name = el("input", { type: "text", placeholder: "the next free one", maxlength: 80, autofocus: true, autocomplete: "off", spellcheck: "false" });
  const note = el("input", { type: "text", maxlength: 500, autocomplete: "off" });
  const given = await dialog(`Split ${count(ids.length, "encounter")} off ${individual.name}?`, (close) => el("form", { onSubmit: (event) => { event.preventDefault(); close({ name: name.value.trim() || null, note: note.value.trim() }); } },
    el("p", { text: `The chosen ${ids.length === 1 ? "encounter becomes" : "encounters become"} a new individual of their own; the others stay with ${individual.name}. It can be undone from the history.` }),
    field("Name of the new individual", name), field("Note", note),
    el("div", { class: "buttons" }, button("Cancel", () => close()), button("Split off", null, { type: "submit", class: "primary", id: "dialog-yes" }))));
  if (!given) return;
  await doing(() => api(`/individuals/${individual.id}/split`, { method: "POST", body: { encounter_ids: ids, ...given } }), (result) => `${result.individual.name} was split off ${individual.name}.`, again);
}

async function merge(individual) {
  const into = await choose(individual);
  if (!into) return;
  const note = el("input", { type: "text", maxlength: 500, autocomplete: "off" });
  const yes = await dialog(`Merge ${individual.name} into ${into.name}?`, (close) => el("form", { onSubmit: (event) => { event.preventDefault(); close({ note: note.value.trim() }); } },
    el("div", { class: "merging" }, side2(individual), el("span", { text: "→", "aria-hidden": "true" }), side2(into)),
    el("p", { text: `${count(individual.encounters.length, "encounter")} of ${individual.name} will belong to ${into.name}, which then has ${individual.encounters.length + into.encounters}. ${individual.name} is no longer a candidate; its name stays in the audit log. It can be undone from the history.` }),
    individual.species !== into.species && el("p", { class: "error", text: `They are of different species: ${species(individual.species)} and ${species(into.species)}.` }),
    field("Note", note), el("div", { class: "buttons" }, button("Cancel", () => close()), button(`Merge into ${into.name}`, null, { type: "submit", class: "primary", id: "dialog-yes" }))));
  if (!yes) return;
  await doing(() => api(`/individuals/${individual.id}/merge`, { method: "POST", body: { into: into.id, note: yes.note } }), () => `${individual.name} is part of ${into.name} now.`,
    () => { location.hash = `#/individual/${into.id}`; });
}

const side2 = (one) => el("div", { class: "cover" }, cover(one.cover), el("b", { text: one.name }), el("span", { class: "soft", text: species(one.species) }));

function choose(individual) {
  return dialog(`Merge ${individual.name} into …`, (close) => {
    const list = el("ol", { class: "choices" });
    const search = async () => {
      try {
        const q = box.value.trim();  // what is searched for by name may be of no species yet
        const got = await api(`/individuals${query({ q, species: q ? "" : individual.species, limit: 20 })}`);
        const others = got.individuals.filter((one) => one.id !== individual.id);
        fill(list, others.map((one) => el("li", {}, el("button", { type: "button", data: { into: one.id }, onClick: () => close(one) }, cover(one.cover),
          el("span", {}, el("b", { text: one.name }), el("small", { text: `${species(one.species)} · ${count(one.photos, "photograph")}` }))))),
        !others.length && el("li", { class: "soft", text: "No individual fits." }));
      } catch (error) {
        fail(error);
      }
    };
    const box = el("input", { type: "search", id: "merge-q", autofocus: true, autocomplete: "off", onInput: later(search) });
    search();
    return [field("Search by name", box), list];
  });
}

async function doing(action, describe, after) {
  try {
    const result = await action();
    changed();
    say(describe(result));
    await after();
  } catch (error) {
    fail(error);
  }
}
