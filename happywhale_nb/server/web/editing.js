// Editing date, place and species of an encounter, and the side of the animal on each photograph.

import { api } from "./api.js";
import { remembered } from "./deciding.js";
import { cropImage, el, field, proposing, select } from "./dom.js";
import { asking } from "./messages.js";
import { changed } from "./session.js";
import { side, SIDES } from "./words.js";

/** The day of a date or time; "" for a month or a year, which a date field cannot show. */
const dayOf = (date) => /^\d{4}-\d{2}-\d{2}/.exec(date ?? "")?.[0] ?? "";

/** The fields of an encounter, also used on the page Add. prefix: prefix of their ids. */
export function encounterFields(prefix, facets, values = {}, { withSide = true } = {}) {
  const [place, places] = proposing(`${prefix}-place`, facets.places, { id: `${prefix}-place`, value: values.place ?? "", maxlength: 200 });
  const [species, kinds] = proposing(`${prefix}-species`, facets.species, { id: `${prefix}-species`, value: values.species ?? "", maxlength: 100, spellcheck: "false" });
  const inputs = {
    date: el("input", { type: "date", id: `${prefix}-date`, value: dayOf(values.date) }),
    place, species,
    ...(withSide && { side: select([["", "Not known"], ...Object.keys(SIDES).map((name) => [name, side(name)])], values.side ?? "", { id: `${prefix}-side` }) }),
    latitude: el("input", { type: "number", step: "any", min: -90, max: 90, id: `${prefix}-latitude`, value: values.latitude ?? "" }),
    longitude: el("input", { type: "number", step: "any", min: -180, max: 180, id: `${prefix}-longitude`, value: values.longitude ?? "" }),
  };
  const nodes = [field("Date", inputs.date), el("div", {}, field("Place", place), places), withSide && field("Side", inputs.side),
    el("div", {}, field("Species", species), kinds), field("Latitude", inputs.latitude), field("Longitude", inputs.longitude)];
  return { inputs, nodes };
}

const PHOTO_SIDES = [["", "Not known"], ["left", "Left"], ["right", "Right"]];

/** Edits the encounter of a view. Only changes are sent; the dialog stays open after an error. */
export async function edit(view) {
  const before = view.encounter;
  const { inputs, nodes } = encounterFields("edit", view.facets, before, { withSide: false });
  const dated = dayOf(before.date) === (before.date ?? "");
  const sides = before.photos.map((photo) => [photo, select(PHOTO_SIDES, photo.side ?? "", { data: { side: photo.id }, "aria-label": `Side of ${photo.name}` })]);
  const changes = () => {
    const found = {};
    for (const [key, input] of Object.entries(inputs)) {
      const number = key === "latitude" || key === "longitude";
      const value = number ? (input.value === "" ? null : Number(input.value)) : input.value.trim();
      if (key === "date" && value === dayOf(before.date)) continue;  // keeps the time, or a date without a day
      if (value !== (before[key] ?? (number ? null : ""))) found[key] = value;
    }
    const turned = sides.filter(([photo, input]) => input.value !== (photo.side ?? ""));
    if (turned.length) found.sides = Object.fromEntries(turned.map(([photo, input]) => [photo.id, input.value]));
    return found;
  };
  const result = await asking(`Edit ${before.name}`, [el("div", { class: "fields" }, nodes),
    !dated && el("p", { class: "soft", text: dayOf(before.date) ? `The time is ${before.date.slice(11)}; it is kept if the day is not changed.` : `The date is ${before.date}; it is kept unless you enter another.` }),
    sides.length > 0 && el("fieldset", {}, el("legend", { class: "label", text: "Side of each photograph" }), el("ul", { class: "sides" }, sides.map(([photo, input]) =>
      el("li", {}, cropImage(photo, 160, ""), el("small", { class: "file", text: photo.name }), input))))], "Save", async () => {
    const change = changes();
    if (!Object.keys(change).length) return {};
    try {
      return await api(`/encounters/${before.id}`, { method: "PATCH", body: { ...change, version: before.version } });
    } catch (error) {
      if (error.status !== 409 || !error.body.encounter) throw error;
      view.conflict(error);
      return {};
    }
  }, { id: "edit-save" });
  if (!result?.id) return;
  changed();
  remembered(result.decision, before.id, "Saved.");
  view.accept(result);
}
