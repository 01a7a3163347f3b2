// Adding photographs: choose them, group them into encounters, and send one request for each encounter.

import { button, el, field, fill } from "./dom.js";
import { encounterFields } from "./editing.js";
import { folderOf, grouped, isPhoto, offered, thumbnails, walk } from "./files.js";
import { fail, say } from "./messages.js";
import { loadFacets, may, session } from "./session.js";
import { sender } from "./sending.js";
import { bytes, count } from "./words.js";

const SHOWN = 200;  // thumbnails; other photographs are only counted

// Photographs not yet sent; kept when the view changes.
const kept = { files: [], grouping: "", minutes: 0 };
const WAYS = [["one", "One encounter"], ["each", "One per photograph"], ["folder", "One per folder"], ["day", "One per day"], ["burst", "One per burst"]];
const WHY = { one: "All photographs show one animal, met once.", each: "Each photograph is a separate encounter.", folder: "The photographs in each folder show one animal, met once.",
  day: "The photographs of one day in one folder show one animal. The catalogue reads their dates after the upload.", burst: "Photographs taken shortly after one another show one animal. The catalogue reads their times after the upload." };
const ORDER = new Intl.Collator("en", { numeric: true });
const placeOf = (file) => `${folderOf(file)}/${file.name}`;
const MANY = 12;  // more photographs than this are unlikely to be one encounter

export async function showAdd(main, route, signal) {
  if (!may("decide")) return void fill(main, el("div", { class: "empty" }, el("h1", { text: "Add" }), el("p", { text: "Your token is read-only. To add photographs, ask for a token with the role review." })));
  if (session.catalogue.embeds === false) return void fill(main, el("div", { class: "empty" }, el("h1", { text: "Add" }), el("p", { text: "This catalogue cannot embed new photographs: its embeddings were imported. Switch it to an encoder with “happywhale catalogue re-embed”." })));
  const facets = await loadFacets(signal);
  const [rule, gap] = (session.catalogue.encounters_by ?? "").split(":");  // of the data folder, proposed for new photographs
  kept.minutes ||= Number(gap) || 10;
  const { inputs, nodes } = encounterFields("add", facets);
  const name = el("input", { type: "text", id: "add-name", maxlength: 80, autocomplete: "off", placeholder: "next free name" });
  const shots = el("ul", { class: "shots chosen", "aria-label": "Chosen photographs" });
  const summary = el("p", { class: "total", role: "status", "aria-live": "polite", id: "chosen" });
  const send = button("Send", () => go(), { class: "primary", id: "send" });
  const clear = button("Clear", () => { kept.files = []; kept.grouping = ""; show(); }, { id: "clear", class: "quiet" });
  const groups = el("fieldset", { class: "segments", id: "grouping" });
  const why = el("p", { class: "soft", id: "grouping-why", role: "status" });
  const minutes = el("input", { type: "number", id: "add-minutes", min: 1, max: 1440, step: 1, value: kept.minutes, onChange: () => { kept.minutes = Number(minutes.value) || 10; } });
  const apart = el("div", { class: "apart" }, field("Maximum minutes between two photographs", minutes));
  const pictures = thumbnails(signal);
  const sending = sender(signal, { done: (files) => { kept.files = kept.files.filter((file) => !files.includes(file)); show(); }, busy: () => show() });

  function take(files) {
    const fresh = [];
    const same = (one, file) => folderOf(one) === folderOf(file) && one.name === file.name && one.size === file.size;
    for (const file of files) if (isPhoto(file) && ![...kept.files, ...fresh].some((one) => same(one, file))) fresh.push(file);
    const other = [...files].filter((file) => !isPhoto(file)).length;
    kept.files.push(...fresh);
    kept.files.sort((one, other) => ORDER.compare(placeOf(one), placeOf(other)));  // browsers list folders unordered
    const known = [...files].length - fresh.length - other;
    const left = [other && `${count(other, "file")} that ${other === 1 ? "is not a photograph" : "are not photographs"} (${[...new Set([...files].filter((file) => !isPhoto(file)).map((file) => file.name))].slice(0, 3).join(", ")}${other > 3 ? ", …" : ""})`, known && `${count(known, "photograph")} already chosen`].filter(Boolean);
    if (left.length) say(`Left out: ${left.join("; ")}.`);
    show();
  }

  function show() {
    const { files } = kept;
    const folders = new Set(files.map(folderOf));
    const dropped = files.some(folderOf);
    if (folders.size < 2 && kept.grouping === "folder") kept.grouping = "";
    const proposed = rule === "folder" && folders.size < 2 ? "" : rule;
    const way = files.length < 2 ? "one" : kept.grouping || proposed || (dropped || files.length > MANY ? "" : "one");
    const number = grouped(files, way).length;
    fill(groups, el("legend", { text: "Encounters" }), WAYS.map(([kind, text]) => {
      const off = kind === "folder" && folders.size < 2;
      return el("label", { title: off ? "There is only one folder." : WHY[kind] }, el("input", { type: "radio", name: "grouping", id: `group-${kind}`, value: kind, checked: way === kind, disabled: off,
        onChange: () => { kept.grouping = kind; show(); document.getElementById(`group-${kind}`).focus(); } }), el("span", { text }));
    }));
    why.textContent = files.length < 2 ? "" : WHY[way] ?? "Choose a grouping: an encounter is one animal met once.";
    why.classList.toggle("error", !way);
    apart.hidden = way !== "burst";
    groups.hidden = files.length < 2;
    const later = ["day", "burst"].includes(way);
    name.closest("label").hidden = way !== "one";
    summary.textContent = files.length ? [count(files.length, "photograph"), bytes(files.reduce((sum, file) => sum + file.size, 0)), later ? `one encounter per ${way}` : way && count(number, "encounter")].filter(Boolean).join(", ") : "";
    clear.disabled = !files.length || sending.running();
    send.disabled = clear.disabled || !way;
    send.title = way ? "" : "Choose a grouping first.";
    send.firstChild.textContent = later ? "Send and group" : number > 1 ? `Send as ${count(number, "encounter")}` : "Send";
    fill(shots, files.slice(0, SHOWN).map((file) => el("li", {}, pictures(file), el("small", { class: "file", text: file.name, title: file.name }),
      button("×", () => { kept.files = kept.files.filter((one) => one !== file); show(); }, { class: "plain close", "aria-label": `Remove ${file.name}`, disabled: sending.running() }))),
    files.length > SHOWN && el("li", { class: "soft", text: `and ${files.length - SHOWN} more` }));
    form.hidden = !files.length;
  }

  async function go() {
    const bad = Object.values(inputs).find((input) => !input.checkValidity());
    if (bad) return void bad.reportValidity();
    const fields = Object.fromEntries(Object.entries(inputs).map(([key, input]) => [key, input.value.trim()]));
    const way = document.querySelector("#grouping :checked")?.value ?? "one";
    const by = way === "burst" ? `burst:${kept.minutes}` : way === "day" ? "day" : "";
    const list = grouped(kept.files, by ? "folder" : way);
    if (by) list.forEach((one) => { one.name = ""; });
    if (way === "one" && name.value.trim()) list[0].name = name.value.trim();
    const sent = await sending.send(list, fields, by);
    name.value = "";
    if (sent.length === 1 && list.length === 1 && !by && !signal.aborted) location.hash = `#/encounter/${sent[0].id}`;
  }

  const pick = el("input", { type: "file", id: "files", multiple: true, accept: offered(), class: "hidden", onChange: () => { take(pick.files); pick.value = ""; } });
  const folder = el("input", { type: "file", id: "folder", webkitdirectory: true, multiple: true, class: "hidden", onChange: () => { take(folder.files); folder.value = ""; } });
  const drop = el("div", { class: "drop", id: "drop", onDragover: (event) => { event.preventDefault(); drop.classList.add("over"); }, onDragleave: () => drop.classList.remove("over"),
    onDrop: (event) => { event.preventDefault(); drop.classList.remove("over"); walk(event.dataTransfer).then(take, fail); } },
  el("p", { text: "Drop photographs or a folder here" }),
  el("p", { class: "soft", text: "JPEG, PNG, TIFF, WebP, HEIC, AVIF, GIF, BMP, JPEG 2000 or PPM; only the first page of each file. Export RAW files as JPEG." }), el("div", { class: "buttons" },
    el("label", { class: "button primary" }, pick, "Choose photographs"), el("label", { class: "button" }, folder, "Choose a folder")));
  const form = el("section", { class: "adding", "aria-label": "Details of the encounters" }, groups, why, apart, el("div", { class: "fields" }, field("Name", name), nodes),
    el("p", { class: "soft", text: "All fields are optional, apply to every encounter sent now, and can be edited later." }), el("div", { class: "buttons" }, send, clear, summary), shots);
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Add" }), el("p", { class: "total", text: "An encounter is one animal met once." })), drop, sending.node, form);
  show();
}
