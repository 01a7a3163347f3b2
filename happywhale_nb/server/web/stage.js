// The stage: the asked photograph and the candidate's, side by side and equally high, with heat maps and zoom.

import { download } from "./api.js";
import { button, cropAddress, el, fill } from "./dom.js";
import { fail } from "./messages.js";
import { guard } from "./session.js";
import { percent, count, day, side } from "./words.js";
import { openZoom } from "./zoom.js";

const GAP = 12;
const LARGE = 1024;

/** The stage of an encounter; `show` draws it from `view`. */
export function makeStage(view) {
  const pair = el("div", { class: "pair" });
  const strip = el("div", { class: "strip", id: "photos", role: "group", "aria-label": "Photographs of this encounter" });
  const heatBox = el("input", { type: "checkbox", role: "switch", id: "heat", onChange: () => showHeat() });
  const zoomButton = button("Zoom", () => zoom(), { id: "zoom", key: "z" });
  const tools = el("div", { class: "tools" }, el("label", { class: "check switch" }, heatBox, "Heat maps", el("kbd", { text: "h", "aria-hidden": "true" })), zoomButton);
  const node = el("section", { class: "stage", id: "stage", "aria-label": "Comparison" }, el("div", { class: "stage-head" }, strip, tools), pair);
  let left = null;   // {frame, photo}: what is shown on each side
  let right = null;
  let heats = null;  // the request and the pictures of the heat maps shown now
  const watch = new ResizeObserver(() => fit());
  watch.observe(node);

  const queryPhoto = () => {
    const { photos } = view.encounter;
    const id = view.asked ?? view.picked?.query_photo;
    return photos.find((one) => one.id === id) ?? photos[0] ?? null;
  };

  function show() {
    const photo = queryPhoto();
    const match = view.picked?.photo ?? null;
    left = photo && frame(photo, "query-photo", "Query photograph");
    right = match && frame(match, "match-photo", `Photograph of ${view.picked.individual?.name}`);
    fill(pair, el("figure", { class: "asked" }, left ? left.node : el("div", { class: "frame none" }, "No photograph"), queryCaption(photo)),
      el("figure", { class: "match" }, right ? right.node : panel(view), matchCaption(view)));
    showStrip(photo);
    heatBox.disabled = !(view.answer?.id && match);
    heatBox.parentElement.title = view.answer && !view.answer.id ? "Only a stored answer has heat maps." : "Where the two photographs resemble each other for the model";
    zoomButton.disabled = !photo;
    fit();
    showHeat();
    preload();
  }

  function frame(photo, id, alt) {
    const image = el("img", { id, src: cropAddress(photo.id, LARGE, photo.crop), alt: `${alt}: ${photo.name}`, decoding: "async", draggable: "false" });
    const holder = el("button", { type: "button", class: "frame", "aria-label": `Zoom. ${alt}: ${photo.name}`, onClick: () => zoom() }, image);
    holder.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); zoom(); } }, { passive: false });
    holder.addEventListener("touchstart", (event) => { if (event.touches.length === 2) { event.preventDefault(); zoom(); } }, { passive: false });
    image.addEventListener("error", () => holder.classList.add("broken"));
    return { node: holder, photo, aspect: photo.crop?.aspect || 1 };
  }

  /** Makes both photographs equally high, as large as there is room: side by side, or one above the other. */
  function fit() {
    const width = node.clientWidth;
    if (!width) return;
    const aspects = [left?.aspect ?? 1, right?.aspect ?? Math.max(1, Math.min(1.4, left?.aspect ?? 1))];
    const most = Math.max(220, Math.min(0.56 * innerHeight, 640));
    const beside = Math.min(most, (width - GAP) / (aspects[0] + aspects[1]));
    const below = Math.min(most, width / Math.max(...aspects));
    const stacked = beside < 200 && below > 1.3 * beside && 2 * below < 0.9 * innerHeight;
    const high = stacked ? below : beside;
    pair.classList.toggle("stacked", stacked);
    [left?.node, right?.node].forEach((holder, index) => {
      holder?.style.setProperty("height", `${high}px`);
      holder?.style.setProperty("width", `${high * aspects[index]}px`);
    });
    const empty = pair.querySelector(".panel");
    empty?.style.setProperty("min-height", stacked ? "auto" : `${high}px`);
    for (const [index, figure] of [...pair.children].entries()) {
      figure.style.setProperty("flex", stacked || (index === 1 && !right) ? "1 1 16rem" : `0 1 ${Math.max(high * aspects[index], 150)}px`);
    }
  }

  function showStrip(current) {
    const { photos } = view.encounter;
    strip.hidden = photos.length < 2;
    fill(strip, photos.map((one, index) => el("button", { type: "button", data: { photo: one.id }, "aria-pressed": String(one.id === current?.id), title: one.name,
      "aria-label": `Photograph ${index + 1} of ${photos.length}: ${one.name}`, onClick: () => { view.asked = one.id; show(); } },
    el("img", { src: cropAddress(one.id, 160, one.crop), alt: "" }))));
  }

  function turn() {
    const { photos } = view.encounter;
    const here = photos.indexOf(queryPhoto());
    if (photos.length > 1) { view.asked = photos[(here + 1) % photos.length].id; show(); }
  }

  function dropHeat() {
    heats?.stop.abort(new DOMException("other candidate", "AbortError"));
    heats?.urls.forEach((url) => URL.revokeObjectURL(url));
    heats = null;
    pair.querySelectorAll(".heatmap").forEach((image) => image.remove());
  }

  async function showHeat() {
    const key = `${view.answer?.id}/${view.picked?.rank}/${left?.photo.id}`;
    dropHeat();
    if (!heatBox.checked || heatBox.disabled || !left || !right) return;
    const { answer, picked } = view;
    const mine = heats = { key, stop: new AbortController(), urls: [] };
    const sides = [["match", right.node], ...(left.photo.id === picked.query_photo || view.encounter.photos.length === 1 ? [["query", left.node]] : [])];
    node.setAttribute("aria-busy", "true");
    try {
      await Promise.all(sides.map(async ([of, holder]) => {
        const { blob } = await download(`/answers/${answer.id}/heat?rank=${picked.rank}&of=${of}`, { signal: mine.stop.signal });
        if (heats !== mine) return;
        const url = URL.createObjectURL(blob);
        mine.urls.push(url);
        holder.append(el("img", { class: "heatmap", src: url, alt: "", data: { of } }));
      }));
    } catch (error) {
      if (heats === mine) { heatBox.checked = false; dropHeat(); fail(error); }
    } finally {
      if (heats === mine || !heats) node.removeAttribute("aria-busy");
    }
  }

  function toggleHeat() {
    if (heatBox.disabled) return;
    heatBox.checked = !heatBox.checked;
    showHeat();
  }

  function zoom() {
    if (!left) return;
    const name = view.picked?.individual?.name;
    openZoom([{ photo: left.photo, title: `${view.encounter.name}` }, right && { photo: right.photo, title: name }].filter(Boolean));
  }

  function preload() {
    const list = view.answer?.candidates ?? [];
    const next = list[list.indexOf(view.picked) + 1]?.photo;
    if (next) new Image().src = cropAddress(next.id, LARGE, next.crop);
  }

  return { node, show, zoom, turn, toggleHeat, close: () => { dropHeat(); watch.disconnect(); } };
}

function queryCaption(photo) {
  if (!photo) return el("figcaption");
  return el("figcaption", {}, el("b", { text: "Asked" }), el("small", { class: "file", text: [photo.name, side(photo.side)].filter(Boolean).join(" · ") }));
}

function matchCaption(view) {
  const one = view.picked;
  if (!one || one.is_new) return el("figcaption", {}, one && [el("span", { class: "rank", text: one.rank }), el("b", { text: "New individual" }), " ", el("span", { class: "probability", text: percent(one.probability) })]);
  const { photo, individual } = one;
  const from = photo && [day(photo.date), photo.place, side(photo.side)].filter(Boolean).join(" · ");
  return el("figcaption", {}, el("span", { class: "rank", text: one.rank }),
    el("a", { href: `#/individual/${individual.id}`, title: "All photographs of this individual" }, el("b", { text: individual.name })), " ",
    el("span", { class: "probability", text: percent(one.probability) }), one.rejected && el("span", { class: "state rejected", text: "rejected" }),
    el("small", {}, from ? `${from} · ` : "", photo?.encounter && [el("a", { href: `#/encounter/${photo.encounter.id}`, text: photo.encounter.name }), " · "], count(one.photos, "known photograph")),
    photo && el("small", { class: "file", text: photo.name }));
}

/** What stands in the place of a match: the name of a new individual, or why there is none. */
function panel(view) {
  const one = view.picked;
  if (view.asking) return el("div", { class: "panel soft loading", text: "Asking …" });
  if (!one) return el("div", { class: "panel soft", text: view.encounter.individual ? `Decided: ${view.encounter.individual.name}` : "No candidate to compare with" });
  if (!one.is_new) return el("div", { class: "panel soft", text: "No photograph" });
  const name = el("input", { type: "text", id: "new-name", value: one.proposed ?? "", autocomplete: "off", spellcheck: "false", maxlength: 80, onInput: () => { one.proposed = name.value; },
    onKeydown: (event) => { if (event.key === "Escape") name.blur(); } });
  return el("form", { class: "panel", id: "new-form", onSubmit: (event) => { event.preventDefault(); view.decideNew(); } },
    el("p", { text: "Nobody of the catalogue: a new individual." }),
    el("label", { class: "field" }, el("span", { class: "label", text: "Its name" }), guard(name)),
    guard(button("New individual", null, { type: "submit", id: "new-confirm", class: "primary" })));
}
