// The page of an individual: its photographs, encounters by date, and decisions.

import { api } from "./api.js";
import { chooseIndividual } from "./choosing.js";
import { remembered } from "./deciding.js";
import { button, cropImage, el, field, fill, proposing } from "./dom.js";
import { decisions } from "./history.js";
import { asking, fail } from "./messages.js";
import { cover } from "./individuals.js";
import { changed, guard, loadFacets } from "./session.js";
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
    splitNote.textContent = !chosen.size ? "Choose encounters to split off." : part ? `${count(chosen.size, "encounter")} chosen.` : "All are chosen: at least one must stay.";
  };
  const guardDisabled = Boolean(split.title);
  const splitNote = el("span", { class: "soft", role: "status", text: "Choose encounters to split off." });
  const photos = encounters.reduce((sum, one) => sum + one.photos.length, 0);
  const span = individual.first && (individual.first === individual.last ? `met on ${day(individual.first)}` : `met from ${day(individual.first)} to ${day(individual.last)}`);
  return [
    el("div", { class: "encounter-head" },
      el("div", {}, el("h1", { text: individual.name }),
        el("p", { class: "facts", text: [species(individual.species) || "species unknown", count(encounters.length, "encounter"), count(photos, "photograph"), span].filter(Boolean).join(" · ") })),
      individual.active !== false && el("div", { class: "buttons" }, guard(button("Rename", () => rename(individual, again), { id: "rename" })),
        guard(button("Species", () => giveSpecies(individual, again).catch(fail), { id: "species", title: individual.species ? "Correct the species" : "Enter the species" })),
        guard(button("Merge into …", () => merge(individual), { id: "merge" })))),
    individual.active === false && el("div", { class: "notice", id: "merged" }, el("p", {}, individual.merged_into ? ["No longer a separate individual: it was merged into ",
      el("a", { href: `#/individual/${individual.merged_into.id}`, text: individual.merged_into.name }), ". Undo the merge in the history below to bring it back."] : "No longer an active individual; see the history below.")),
    individual.known_as?.length > 0 && el("p", { class: "soft", id: "known-as", text: `Also known as ${individual.known_as.join(", ")}` }),
    el("section", { "aria-label": "Encounters" },
      el("div", { class: "section-head" }, el("h2", { text: "Encounters" }), encounters.length > 1 && individual.active !== false && [split, splitNote]),
      encounters.length ? el("ol", { class: "timeline" }, encounters.map((one) => met(one, encounters.length > 1 && individual.active !== false && choose)))
        : el("p", { class: "soft", text: individual.merged_into ? `Its encounters now belong to ${individual.merged_into.name}.` : "No encounters left." })),
    el("section", { id: "history", "aria-label": "History" }, el("h2", { text: "History" }),
      individual.history.length ? decisions(individual.history, again) : el("p", { class: "soft", text: "No decisions yet." })),
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

/** Shows a message with an Undo button, and reloads the page. */
async function done(result, text, after) {
  changed();
  remembered(result.decision, null, text);
  await after();
}

async function rename(individual, again) {
  const name = el("input", { type: "text", value: individual.name, required: true, maxlength: 80, autofocus: true, autocomplete: "off", spellcheck: "false", id: "rename-name" });
  const result = await asking(`Rename ${individual.name}`, field("New name", name), "Rename",
    async () => (name.value.trim() === individual.name ? {} : api(`/individuals/${individual.id}`, { method: "PATCH", body: { name: name.value.trim() } })), {
      remedy: (error, close) => (error.body?.individual && error.body.individual.id !== individual.id
        ? button(`Merge with ${error.body.individual.name} …`, () => close({ into: error.body.individual }), { id: "rename-merge" }) : null),
    });
  if (result?.into) return void await mergeInto(individual, result.into);
  if (result?.id) await done(result, `${individual.name} is now ${result.name}.`, again);
}

/** Changes the species of an individual and of its encounters; exports filter by the latter. */
async function giveSpecies(individual, again) {
  const facets = await loadFacets();
  const [kind, kinds] = proposing("individual-species", facets.species, { id: "individual-species", value: individual.species, maxlength: 100, autofocus: true, spellcheck: "false" });
  const result = await asking(`Species of ${individual.name}`, [el("div", {}, field("Species", kind), kinds),
    el("p", { class: "soft", text: `Its encounters ${individual.species ? `recorded as ${species(individual.species)} or without a species` : "without a species"} get it too. You can undo this.` })], "Save",
  async () => (kind.value.trim() === individual.species ? {} : api(`/individuals/${individual.id}`, { method: "PATCH", body: { species: kind.value.trim() } })));
  if (result?.id) await done(result, result.species ? `${individual.name} is a ${species(result.species)}.` : `The species of ${individual.name} is unknown.`, again);
}

async function splitOff(individual, ids, again) {
  const name = el("input", { type: "text", placeholder: "next free name", maxlength: 80, autofocus: true, autocomplete: "off", spellcheck: "false", id: "split-name" });
  const note = el("input", { type: "text", maxlength: 500, autocomplete: "off" });
  const result = await asking(`Split ${count(ids.length, "encounter")} off ${individual.name}?`, [
    el("p", { text: `The chosen ${ids.length === 1 ? "encounter becomes" : "encounters become"} a new individual; the others stay with ${individual.name}. You can undo this in the history.` }),
    field("Name of the new individual", name), field("Note", note)], "Split off",
  () => api(`/individuals/${individual.id}/split`, { method: "POST", body: { encounter_ids: ids, name: name.value.trim() || null, note: note.value.trim() } }));
  if (result) await done(result, `${result.individual.name} was split off ${individual.name}.`, again);
}

async function merge(individual) {
  const into = await chooseIndividual(`Merge ${individual.name} into …`, { kind: individual.species, except: [individual.id], id: "merge-q" });
  if (into) await mergeInto(individual, into);
}

async function mergeInto(individual, into) {
  const note = el("input", { type: "text", maxlength: 500, autocomplete: "off" });
  const all = individual.encounters.length + (into.encounters?.length ?? into.encounters ?? 0);
  const result = await asking(`Merge ${individual.name} into ${into.name}?`, [
    el("div", { class: "merging" }, side2(individual), el("span", { text: "→", "aria-hidden": "true" }), side2(into)),
    el("p", { text: `${count(individual.encounters.length, "encounter")} of ${individual.name} will belong to ${into.name}, which then has ${all}. ${individual.name} is no longer a candidate; its name stays in the history and can still be searched. You can undo this.` }),
    individual.species !== into.species && individual.species && into.species && el("p", { class: "error", text: `Their species differ: ${species(individual.species)} and ${species(into.species)}.` }),
    field("Note", note)], `Merge into ${into.name}`, () => api(`/individuals/${individual.id}/merge`, { method: "POST", body: { into: into.id, note: note.value.trim() } }));
  if (result) await done(result, `${individual.name} was merged into ${into.name}.`, () => { location.hash = `#/individual/${into.id}`; });
}

const side2 = (one) => el("div", { class: "cover" }, cover(one.cover), el("b", { text: one.name }), el("span", { class: "soft", text: species(one.species) }));
