// Exports of the catalogue for other programs.

import { api, download, query } from "./api.js";
import { button, el, field, fill, select } from "./dom.js";
import { fail, say } from "./messages.js";
import { loadFacets } from "./session.js";
import { species } from "./words.js";

const KINDS = [
  ["csv", "CSV", "One row per photograph, with its encounter and individual: for a spreadsheet, R or pandas."],
  ["wildbook", "Wildbook", "The standard import sheet of Wildbook (Flukebook), to add the encounters to a shared catalogue."],
  ["camtrap-dp", "Camtrap DP", "A Camera Trap Data Package: deployments, media and observations, to archive or to publish through GBIF."],
  ["mark", "MARK", "Capture histories, one row per individual and one digit per occasion: an encounter history file for Program MARK."],
  ["rmark", "RMark", "The same capture histories as a table, for import.chdata of the R package RMark."],
];
const TIMED = ["mark", "rmark"];
const WITH_PHOTOS = ["wildbook", "camtrap-dp"];
const REFUSED = { wildbook: "Wildbook will refuse this sheet:", "camtrap-dp": "This package will be refused:" };
const FIRST = 20; // rows that are shown

export async function showExports(main, route, signal) {
  const facets = await loadFacets(signal);
  const clear = () => main.querySelectorAll("[data-notes]").forEach((node) => node.replaceChildren());
  const only = select([["", "All"], ...facets.species.map((value) => [value, species(value)])], "", { id: "exports-species", onChange: clear });
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Exports" }),
    el("p", { class: "total", text: "Exports contain individuals that a user confirmed, and those that were imported with a name." })),
  el("div", { class: "exports-species" }, field("Species", only)),
  el("ul", { class: "exports" }, KINDS.map((kind) => item(...kind, only, signal))));
}

/** One format. Messages about the file are shown before the download. */
function item(kind, title, text, only, signal) {
  const notes = el("div", { class: "notes", role: "status", data: { notes: kind } });
  const clear = () => notes.replaceChildren();
  const occasions = TIMED.includes(kind)
    && select([["year", "Year"], ["month", "Month"], ["day", "Day"]], "year", { id: `occasions-${kind}`, onChange: clear });
  const submitter = kind === "wildbook" && el("input", { id: "submitter", autocomplete: "off", spellcheck: "false", onInput: clear });
  const params = (more = {}) => query({
    species: only.value, occasions: occasions ? occasions.value : "", submitter: submitter ? submitter.value.trim() : "", ...more,
  });
  const busy = (action) => async () => {
    get.disabled = true;
    try { await action(); } catch (error) { fail(error); } finally { get.disabled = false; }
  };
  const take = busy(async () => { await save(kind, params()); clear(); });
  const takeAll = () => { follow(`/api/exports/${kind}${params({ photos: "true" })}`, `${kind}.zip`); clear(); };
  const get = button("Download", busy(async () => {
    fill(notes, el("p", { class: "soft loading", text: "Checking the export …" }));
    let told;
    try { told = await api(`/exports/${kind}/messages${params()}`, { signal }); } finally { clear(); }
    if (!told.total && !WITH_PHOTOS.includes(kind)) return void await save(kind, params());
    fill(notes, describe(told, kind), el("div", { class: "buttons" },
      button(told.refused.length ? "Download anyway" : "Download the file", take, { class: told.refused.length ? "" : "primary", data: { take: kind } }),
      WITH_PHOTOS.includes(kind) && button("With the photographs, as a zip", takeAll, { data: { photos: kind } }),
      button("Cancel", clear, { class: "plain" })));
    notes.querySelector("button").focus();
  }), { data: { export: kind }, "aria-label": `Download ${title}` });
  return el("li", {}, el("div", {}, el("h2", { text: title }), el("p", { text })),
    occasions && el("label", { class: "field" }, el("span", { class: "label", text: "Occasion" }), occasions),
    submitter && field("Your Wildbook user name", submitter), get, notes);
}

/** What the other program will refuse, and what the file leaves out. */
function describe({ refused, notes, total }, kind) {
  const more = total - notes.length - Math.min(refused.length, FIRST);
  return [
    refused.length > 0 && [el("p", { class: "error", text: REFUSED[kind] }),
      el("ul", {}, refused.slice(0, FIRST).map((text) => el("li", { text })), more > 0 && el("li", { text: `… and ${more} more` }))],
    notes.length > 0 && [el("p", { text: "In this file:" }), el("ul", {}, notes.map((text) => el("li", { text })))]];
}

/** Downloads a large file directly, without holding it in memory. */
function follow(address, name) {
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  say(`Downloading ${name}.`);
}

async function save(kind, params) {
  const { blob, name } = await download(`/exports/${kind}${params}`);
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name || kind });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  say(`Downloaded ${name || kind}.`);
}
