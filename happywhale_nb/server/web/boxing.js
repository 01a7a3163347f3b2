// Drawing the bounding box of an animal on the whole photograph, by mouse, finger, or numbers.

import { api } from "./api.js";
import { remembered } from "./deciding.js";
import { button, el, field, select } from "./dom.js";
import { dialog, fail } from "./messages.js";

const SIDES = ["Left", "Top", "Right", "Bottom"];
const SMALLEST = 8;  // pixels of the photograph

/** Lets the user draw a box; then the photograph is embedded and the candidates are ranked again. */
export async function drawBox(view) {
  const { photos, version, id } = view.encounter;
  const shown = view.asked ?? view.picked?.query_photo;
  let photo = photos.find((one) => one.id === shown) ?? photos[0];
  if (!photo) return;
  const given = await dialog("Draw a box around the animal", (close) => {
    const image = el("img", { alt: "", draggable: "false" });
    const mark = el("div", { class: "box" });
    const area = el("div", { class: "drawing", id: "box-view" }, image, mark);
    const numbers = SIDES.map((name) => el("input", { type: "number", min: 0, step: 1, id: `box-${name.toLowerCase()}`, onInput: () => { box = numbers.map((one) => Number(one.value)); place(); } }));
    const save = button("Save the box", () => close({ photo, box: box.map(Math.round) }), { class: "primary", id: "box-save" });
    let box = null;
    let start = null;

    const valid = () => box && box[2] - box[0] >= SMALLEST && box[3] - box[1] >= SMALLEST && box[2] <= photo.width && box[3] <= photo.height && Math.min(...box) >= 0;
    function place() {
      const scale = [photo.width, photo.height];
      mark.hidden = !box;
      if (box) {
        for (const [at, name] of [[0, "left"], [1, "top"]]) mark.style.setProperty(name, `${100 * box[at] / scale[at]}%`);
        mark.style.setProperty("width", `${100 * Math.max(0, box[2] - box[0]) / photo.width}%`);
        mark.style.setProperty("height", `${100 * Math.max(0, box[3] - box[1]) / photo.height}%`);
      }
      save.disabled = !valid();
    }
    function setBox(now) {
      box = now;
      numbers.forEach((input, index) => { input.value = box ? Math.round(box[index]) : ""; input.max = index % 2 ? photo.height : photo.width; });
      place();
    }
    function choose(now) {
      photo = now;
      image.src = `/api/photos/${photo.id}/picture?side=1600`;
      area.style.setProperty("--aspect", String(photo.width / photo.height));
      setBox(photo.crop?.box ?? null);
    }
    const at = (event) => {
      const place = area.getBoundingClientRect();
      return [photo.width * Math.min(1, Math.max(0, (event.clientX - place.left) / place.width)), photo.height * Math.min(1, Math.max(0, (event.clientY - place.top) / place.height))];
    };
    area.addEventListener("pointerdown", (event) => { event.preventDefault(); area.setPointerCapture(event.pointerId); start = at(event); });
    area.addEventListener("pointermove", (event) => {
      if (!start) return;
      const end = at(event);
      setBox([Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])]);
    });
    for (const name of ["pointerup", "pointercancel"]) area.addEventListener(name, () => { start = null; });
    choose(photo);
    const which = select(photos.map((one) => [String(one.id), one.name]), String(photo.id), { id: "box-photo", onChange: () => choose(photos.find((one) => String(one.id) === which.value)) });
    return [photos.length > 1 && field("Photograph", which), el("div", { class: "drawing-hold" }, area), el("p", { class: "soft", text: "Drag a rectangle over the animal, or type its edges in pixels." }),
      el("div", { class: "row edges" }, numbers.map((input, index) => field(SIDES[index], input))),
      el("div", { class: "buttons" }, button("Without a box", () => close({ photo, box: null }), { id: "box-none", title: "Use the whole photograph" }), button("Cancel", () => close()), save)];
  }, { wide: true });
  if (!given) return;
  try {
    const result = await api(`/photos/${given.photo.id}/crop`, { method: "PUT", body: { box: given.box, version } });
    view.accept(result);
    remembered(result.decision, id, "Box saved. Ranking candidates again …");
    if (view.id === id) await view.ask();
  } catch (error) {
    if (error.status === 409 && error.body.encounter) view.conflict(error);
    else fail(error);
  }
}
