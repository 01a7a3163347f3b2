// Date, place, species and side of an encounter.

import { api } from "./api.js";
import { button, el, field, proposing, select } from "./dom.js";
import { dialog, fail, say } from "./messages.js";
import { changed } from "./session.js";
import { side, SIDES } from "./words.js";

/** The fields of an encounter, shared with the page that adds photographs. prefix: of their ids. */
export function encounterFields(prefix, facets, values = {}) {
  const [place, places] = proposing(`${prefix}-place`, facets.places, { id: `${prefix}-place`, value: values.place ?? "", maxlength: 200 });
  const [species, kinds] = proposing(`${prefix}-species`, facets.species, { id: `${prefix}-species`, value: values.species ?? "", maxlength: 100, spellcheck: "false" });
  const inputs = {
    date: el("input", { type: "date", id: `${prefix}-date`, value: values.date ?? "" }),
    place, species,
    side: select([["", "Not known"], ...Object.keys(SIDES).map((name) => [name, side(name)])], values.side ?? "", { id: `${prefix}-side` }),
    latitude: el("input", { type: "number", step: "any", min: -90, max: 90, id: `${prefix}-latitude`, value: values.latitude ?? "" }),
    longitude: el("input", { type: "number", step: "any", min: -180, max: 180, id: `${prefix}-longitude`, value: values.longitude ?? "" }),
  };
  const nodes = [field("Date", inputs.date), el("div", {}, field("Place", place), places), field("Side", inputs.side),
    el("div", {}, field("Species", species), kinds), field("Latitude", inputs.latitude), field("Longitude", inputs.longitude)];
  return { inputs, nodes };
}

/** Edits the encounter of a view; what was not changed is not sent. */
export async function edit(view) {
  const before = view.encounter;
  const { inputs, nodes } = encounterFields("edit", view.facets, before);
  const change = await dialog(`Edit ${before.name}`, (close) => el("form", { onSubmit: (event) => {
    event.preventDefault();
    const changes = {};
    for (const [key, input] of Object.entries(inputs)) {
      const number = key === "latitude" || key === "longitude";
      const value = number ? (input.value === "" ? null : Number(input.value)) : input.value.trim();
      if (value !== (before[key] ?? (number ? null : ""))) changes[key] = value;
    }
    close(changes);
  } }, el("div", { class: "fields" }, nodes), el("div", { class: "buttons" }, button("Cancel", () => close()), button("Save", null, { type: "submit", class: "primary", id: "edit-save" }))));
  if (!change || !Object.keys(change).length) return;
  try {
    view.accept(await api(`/encounters/${before.id}`, { method: "PATCH", body: { ...change, version: before.version } }));
    changed();
    say("Saved.");
  } catch (error) {
    if (error.status === 409 && error.body.encounter) view.conflict(error);
    else fail(error);
  }
}
