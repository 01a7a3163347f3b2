// A dialog to zoom and move two photographs together at equal scale.

import { button, el, fill } from "./dom.js";
import { pressed } from "./keys.js";
import { dialog } from "./messages.js";

const FIRST = 1600;  // longer side of the first image in pixels
const MOST = 24;

/** Opens the dialog for photographs, `{photo, title}` each; at first their boxes have equal height. */
export function openZoom(shown) {
  return dialog("Zoom", (close, node) => {
    const panes = shown.map(makePane);
    const together = el("input", { type: "checkbox", checked: true, id: "zoom-together" });
    const light = el("input", { type: "range", min: 60, max: 260, value: 100, step: 10, id: "zoom-light", onInput: () => apply() });
    let mirrored = false;
    const reset = () => { for (const pane of panes) Object.assign(pane.at, { scale: 1, x: 0, y: 0 }); apply(); };
    const mirror = button("Mirror", () => { mirrored = !mirrored; mirrorButton.setAttribute("aria-pressed", String(mirrored)); apply(); },
      { key: "m", title: "Mirror the candidate, to compare a left with a right side", "aria-pressed": "false" });
    const mirrorButton = mirror;

    function apply() {
      const aspects = panes.map(({ photo, box }) => (box[2] - box[0]) / (box[3] - box[1]));
      const high = Math.min(...panes.map(({ area }, index) => Math.min(area.clientHeight, area.clientWidth / aspects[index])));
      panes.forEach((pane, index) => {
        const { area, image, photo, box, at } = pane;
        const scale = high / (box[3] - box[1]) * at.scale;
        const [x, y] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
        const flip = index === 1 && mirrored ? -1 : 1;
        image.style.setProperty("transform", `translate(${area.clientWidth / 2 + at.x}px, ${area.clientHeight / 2 + at.y}px) scale(${flip * scale}, ${scale}) translate(${-x}px, ${-y}px)`);
        image.style.setProperty("filter", light.value === "100" ? "none" : `brightness(${light.value}%)`);
        sharpen(pane, scale);
      });
    }
    const moved = (pane) => (together.checked ? panes : [pane]);
    const shift = (pane, x, y) => { for (const one of moved(pane)) { one.at.x += x; one.at.y += y; } apply(); };
    /** Zooms by a factor around a point, in pixels from the centre of the pane. */
    const scaleBy = (pane, factor, x = 0, y = 0) => {
      const now = Math.min(MOST, Math.max(0.2, pane.at.scale * factor)) / pane.at.scale;
      for (const { at } of moved(pane)) { at.scale *= now; at.x = x - (x - at.x) * now; at.y = y - (y - at.y) * now; }
      apply();
    };
    for (const pane of panes) listen(pane, shift, scaleBy);
    const keys = { "+": () => scaleBy(panes[0], 1.4), "=": () => scaleBy(panes[0], 1.4), "-": () => scaleBy(panes[0], 1 / 1.4), "0": reset, z: () => close(), m: () => mirror.click(),
      ArrowLeft: () => shift(panes[0], 60, 0), ArrowRight: () => shift(panes[0], -60, 0), ArrowUp: () => shift(panes[0], 0, 60), ArrowDown: () => shift(panes[0], 0, -60) };
    node.addEventListener("keydown", (event) => {
      const run = keys[pressed(event)];
      if (!run || event.target.type === "range") return;
      event.preventDefault();
      run();
    });
    const watch = new ResizeObserver(() => apply());
    watch.observe(panes[0].area);
    node.addEventListener("close", () => watch.disconnect());
    return el("div", { class: "zoom", id: "zoom-view" },
      el("div", { class: "panes" }, panes.map((pane) => pane.node)),
      el("div", { class: "row zoom-tools" }, button("−", keys["-"], { "aria-label": "Zoom out", key: "-" }), button("+", keys["+"], { "aria-label": "Zoom in", key: "+" }), button("Fit", reset, { key: "0" }),
        panes.length > 1 && mirror, panes.length > 1 && el("label", { class: "check" }, together, "Move together"), el("label", { class: "check" }, "Brightness", light)));
  }, { wide: true, id: "zoom-dialog" });
}

function makePane({ photo, title }) {
  const image = el("img", { src: `/api/photos/${photo.id}/picture?side=${FIRST}`, alt: photo.name, draggable: "false", style: { width: `${photo.width}px`, height: `${photo.height}px` } });
  const area = el("div", { class: "area" }, image);
  const node = el("figure", {}, area, fill(el("figcaption"), el("b", { text: title }), " ", el("small", { class: "file", text: photo.name })));
  return { node, area, image, photo, box: photo.crop?.box ?? [0, 0, photo.width, photo.height], at: { scale: 1, x: 0, y: 0 }, sharp: FIRST };
}

/** Loads the full photograph when the zoom exceeds the resolution of the first image. */
function sharpen(pane, scale) {
  const longest = Math.max(pane.photo.width, pane.photo.height);
  if (pane.sharp >= longest || scale * devicePixelRatio * longest < 1.2 * pane.sharp) return;
  pane.sharp = longest;
  const full = new Image();
  full.onload = () => { pane.image.src = full.src; };
  full.src = `/api/photos/${pane.photo.id}/picture?side=${longest}`;
}

function listen(pane, shift, scaleBy) {
  const { area } = pane;
  const fingers = new Map();
  const from = (x, y) => { const place = area.getBoundingClientRect(); return [x - place.left - place.width / 2, y - place.top - place.height / 2]; };
  area.addEventListener("wheel", (event) => {
    event.preventDefault();
    scaleBy(pane, Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), ...from(event.clientX, event.clientY));
  }, { passive: false });
  area.addEventListener("dblclick", (event) => scaleBy(pane, pane.at.scale > 1.5 ? 1 / pane.at.scale : 3, ...from(event.clientX, event.clientY)));
  area.addEventListener("pointerdown", (event) => { area.setPointerCapture(event.pointerId); fingers.set(event.pointerId, event); });
  area.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const other = [...fingers.values()].find((one) => one.pointerId !== event.pointerId);
    if (other) {
      const away = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
      scaleBy(pane, away(event) / away(before), ...from((event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2));
      shift(pane, (event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
    } else {
      shift(pane, event.clientX - before.clientX, event.clientY - before.clientY);
    }
    fingers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) area.addEventListener(name, (event) => fingers.delete(event.pointerId));
}
