// The comparison: the query photograph and the candidate's, at equal height, with heat maps and zoom.

import { api, download, query } from "./api.js";
import { button, cropAddress, el, fill, select } from "./dom.js";
import { fail } from "./messages.js";
import { guard } from "./session.js";
import { percent, count, day, side, species } from "./words.js";
import { openZoom } from "./zoom.js";

const GAP = 12;
const CAPTIONS = 64;  // pixels under a photograph
const LARGE = 1024;

/** The comparison for an encounter; `show` draws it from `view`. */
export function makeStage(view) {
  const pair = el("div", { class: "pair" });
  const strip = el("div", { class: "strip", id: "photos", role: "group", "aria-label": "Photographs of this encounter" });
  const heatBox = el("input", { type: "checkbox", role: "switch", id: "heat", onChange: () => showHeat() });
  const zoomButton = button("Zoom", () => zoom(), { id: "zoom", key: "z" });
  const tools = el("div", { class: "tools" }, el("label", { class: "check switch" }, heatBox, "Heat maps", el("kbd", { text: "h", "aria-hidden": "true" })), zoomButton);
  const node = el("section", { class: "stage", id: "stage", "aria-label": "Comparison" }, el("div", { class: "stage-head" }, strip, tools), pair);
  let left = null;   // {frame, photo}: the photograph on each side
  let right = null;
  let heats = null;  // the request and the images of the current heat maps
  const known = new Map();  // photographs of an individual by number and side, the same side first
  const watch = new ResizeObserver(() => fit());
  watch.observe(node);
  addEventListener("resize", fit);

  const queryPhoto = () => {
    const { photos } = view.encounter;
    const id = view.asked ?? view.picked?.query_photo;
    return photos.find((one) => one.id === id) ?? photos.find((one) => !one.withdrawn) ?? photos[0] ?? null;
  };
  view.askedPhoto = queryPhoto;
  const matchPhoto = () => view.flipped ?? view.picked?.photo ?? null;

  /** Shows the next (1) or previous (-1) photograph of the candidate. */
  async function flip(by) {
    const one = view.picked;
    if (!one?.individual || one.photos < 2) return;
    const asked = queryPhoto()?.side ?? "";
    const key = `${one.individual.id}/${asked}`;
    if (!known.has(key)) {
      const got = await api(`/individuals/${one.individual.id}/photos${query({ side: asked, limit: 200 })}`, { signal: view.signal });
      known.set(key, got.photos.filter((photo) => photo.encounter?.id !== view.encounter.id));
    }
    const list = known.get(key);
    if (view.picked !== one || !list.length) return;
    const here = list.findIndex((photo) => photo.id === matchPhoto()?.id);
    const to = here < 0 ? 0 : (here + by + list.length) % list.length;
    view.flipped = list[to];
    view.flippedAt = `${to + 1} of ${list.length}`;
    show();
    new Image().src = cropAddress(list[(to + by + list.length) % list.length].id, LARGE, list[(to + by + list.length) % list.length].crop);
  }

  function show() {
    const photo = queryPhoto();
    const match = matchPhoto();
    const held = pair.contains(document.activeElement) ? document.activeElement.dataset.flip : "";
    left = photo && frame(photo, "query-photo", "Query photograph");
    right = match && frame(match, "match-photo", `Photograph of ${view.picked.individual?.name}`);
    fill(pair, el("figure", { class: "asked" }, left ? left.node : el("div", { class: "frame none" }, "No photograph"), queryCaption(photo)),
      el("figure", { class: "match" }, right ? right.node : panel(view), matchCaption(view, match, flip)));
    if (held) pair.querySelector(`[data-flip="${held}"]`)?.focus({ preventScroll: true });
    showStrip(photo);
    const paired = match && view.picked.rank && match.id === view.picked.photo?.id;
    heatBox.disabled = !(view.answer?.id && paired && view.answer.heat_maps !== "");
    heatBox.parentElement.title = paired || !match ? heatTitle(view.answer) : "Heat maps are available only for the candidate's nearest photograph.";
    zoomButton.disabled = !photo;
    fit();
    showHeat();
    preload();
  }

  function heatTitle(answer) {
    if (answer?.heat_maps === "") return "No heat maps: the embeddings of this catalogue were imported.";
    const how = answer?.heat_maps === "occlusion" ? ", computed by occlusion" : "";
    return `Regions that make the two photographs similar for the model${how}`;
  }

  function frame(photo, id, alt) {
    const image = el("img", { id, src: cropAddress(photo.id, LARGE, photo.crop), alt: `${alt}: ${photo.name}`, decoding: "async", draggable: "false" });
    const holder = el("button", { type: "button", class: "frame", "aria-label": `Zoom. ${alt}: ${photo.name}`, onClick: () => zoom() }, image);
    holder.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); zoom(); } }, { passive: false });
    holder.addEventListener("touchstart", (event) => { if (event.touches.length === 2) { event.preventDefault(); zoom(); } }, { passive: false });
    image.addEventListener("error", () => { holder.classList.add("broken"); fill(holder, el("span", { class: "nobody", text: `${photo.name} cannot be shown: its file is missing or unreadable.` })); });
    return { node: holder, photo, aspect: photo.crop?.aspect || 1 };
  }

  /** Scales both photographs to the same height, as large as possible: side by side, or stacked. */
  function fit() {
    const width = node.clientWidth;
    if (!width) return;
    const aspects = [left?.aspect ?? 1, right?.aspect ?? Math.max(1, Math.min(1.4, left?.aspect ?? 1))];
    const bar = document.querySelector(".actions");
    const captions = [...pair.querySelectorAll("figcaption")].map((one) => one.offsetHeight || CAPTIONS);
    const room = innerHeight - Math.min(pair.getBoundingClientRect().top + scrollY, 0.5 * innerHeight) - (bar?.offsetHeight ?? 60);
    const most = Math.max(180, Math.min(room - Math.max(...captions, 0), 640));
    const beside = Math.min(most, (width - GAP) / (aspects[0] + aspects[1]));
    const below = Math.min(Math.max(130, (room - captions[0] - (captions[1] ?? 0) - 3 * GAP) / 2), width / Math.max(...aspects));
    const stacked = beside < 200 && below > 1.15 * beside;
    const high = stacked ? below : beside;
    pair.classList.toggle("stacked", stacked);
    [left?.node, right?.node].forEach((holder, index) => {
      holder?.style.setProperty("height", `${high}px`);
      holder?.style.setProperty("width", `${high * aspects[index]}px`);
    });
    const empty = pair.querySelector(".panel");
    empty?.style.setProperty("min-height", stacked ? "auto" : `${high}px`);
    for (const [index, figure] of [...pair.children].entries()) {
      figure.style.setProperty("flex", stacked ? "0 0 auto" : index === 1 && !right ? "1 1 16rem" : `0 1 ${Math.max(high * aspects[index], 150)}px`);
    }
  }

  function showStrip(current) {
    const { photos } = view.encounter;
    strip.hidden = photos.length < 2;
    fill(strip, photos.map((one, index) => el("button", { type: "button", data: { photo: one.id }, "aria-pressed": String(one.id === current?.id), title: one.withdrawn ? `${one.name}: withdrawn (${one.withdrawn})` : one.name, class: one.withdrawn ? "gone" : null,
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

  /** Scrolls the photographs into view. */
  function reveal() {
    const { top, bottom } = pair.getBoundingClientRect();
    const covered = document.querySelector(".actions")?.offsetHeight ?? 0;
    if (top < 0 || bottom > innerHeight - (getComputedStyle(document.querySelector(".actions")).position === "fixed" ? covered : 0)) {
      node.scrollIntoView({ block: "start" });
    }
  }

  return { node, show, zoom, turn, flip, reveal, toggleHeat, close: () => { dropHeat(); watch.disconnect(); removeEventListener("resize", fit); } };
}

function queryCaption(photo) {
  if (!photo) return el("figcaption");
  return el("figcaption", {}, el("b", { text: "Query" }), el("small", { class: "file", text: [photo.name, side(photo.side)].filter(Boolean).join(" · ") }));
}

function matchCaption(view, photo, flip) {
  const one = view.picked;
  if (!one || one.is_new) return el("figcaption", {}, one && [el("span", { class: "rank", text: one.rank }), el("b", { text: "New individual" }), " ", el("span", { class: "probability", text: percent(one.probability) })]);
  const { individual } = one;
  const turn = (by, name, text) => button(text, () => flip(by).catch(fail), { class: "plain close", "aria-label": name, title: `${name} (${by < 0 ? "j" : "k"})`, data: { flip: by } });
  const from = photo && [day(photo.date), photo.place, side(photo.side)].filter(Boolean).join(" · ");
  return el("figcaption", {}, one.photos > 1 && el("span", { class: "flip", role: "group", "aria-label": `Photographs of ${individual.name}` }, turn(-1, "Previous photograph", "‹"),
    el("small", { role: "status", text: view.flipped ? view.flippedAt : `${one.photos} photographs` }), turn(1, "Next photograph", "›")),
  one.rank && el("span", { class: "rank", text: one.rank }),
    el("a", { href: `#/individual/${individual.id}`, title: "All photographs of this individual" }, el("b", { text: individual.name })), " ",
    one.rank !== null ? el("span", { class: "probability", text: percent(one.probability) }) : el("small", { class: "inline", text: "chosen by name" }), one.rejected && el("span", { class: "state rejected", text: "rejected" }),
    el("small", {}, from ? `${from} · ` : "", photo?.encounter && [el("a", { href: `#/encounter/${photo.encounter.id}`, text: photo.encounter.name }), " · "], count(one.photos, "known photograph")),
    photo && el("small", { class: "file", text: photo.name }));
}

/** The panel in place of a candidate's photograph: the form for a new individual, or why there is none. */
function panel(view) {
  const one = view.picked;
  if (view.asking) return el("div", { class: "panel soft loading", text: "Ranking candidates …" });
  if (!one) return el("div", { class: "panel soft", text: view.encounter.individual ? `Decided: ${view.encounter.individual.name}` : "No candidate to compare with" });
  if (!one.is_new) return el("div", { class: "panel soft", text: "No photograph" });
  const name = el("input", { type: "text", id: "new-name", value: one.proposed ?? "", autocomplete: "off", spellcheck: "false", maxlength: 80, onInput: () => { one.proposed = name.value; },
    onKeydown: (event) => { if (event.key === "Escape") name.blur(); } });
  return el("form", { class: "panel", id: "new-form", onSubmit: (event) => { event.preventDefault(); view.decideNew(kindOf(view)); } },
    el("p", { text: "A new individual, not in the catalogue." }),
    el("label", { class: "field" }, el("span", { class: "label", text: "Name" }), guard(name)),
    asksBack(view),
    guard(button("New individual", null, { type: "submit", id: "new-confirm", class: "primary" })));
}

/** The species chosen in the panel, if there is a choice. */
function kindOf(view) {
  const chosen = document.getElementById("new-species");
  return chosen ? { species: chosen.value } : view.asksBack?.more ?? {};
}

/** The server's question about a new individual: is it this known one, or what is its species? */
function asksBack(view) {
  const { text, known, species: kinds, alike } = view.asksBack ?? {};
  if (!text) return null;
  return el("div", { class: "notice", role: "alert", id: "new-known" }, el("p", { text: `${text[0].toUpperCase()}${text.slice(1)}.` }),
    known && el("div", { class: "buttons" }, button(`It is ${known.name}`, () => view.decideKnown(known), { id: "new-is-known", class: "primary" }),
      el("a", { class: "button", href: `#/individual/${known.id}`, target: "_blank", text: "View" }),
      alike && button("Another individual", () => view.decideNew({ ...view.asksBack.more, alike: true }), { id: "new-alike" })),
    kinds && el("label", { class: "field" }, el("span", { class: "label", text: "Species" }), whichSpecies(view, kinds)));
}

/** A select of the catalogue's species. Its default is the likeliest species, or that of the best candidate, or none. */
function whichSpecies(view, kinds) {
  const likely = view.answer?.species?.[0]?.name ?? view.answer?.candidates.find((one) => one.individual)?.individual.species;
  const first = kinds.includes(likely) ? likely : "?";
  const node = select([...(first === "?" ? [["?", "Choose …"]] : []), ...kinds.map((value) => [value, species(value)]), ["", "Not known"]], first, { id: "new-species" });
  const check = () => node.setCustomValidity(node.value === "?" ? "Choose the species, or “Not known”." : "");
  node.addEventListener("change", check);
  check();
  return node;
}
