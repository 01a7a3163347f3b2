// Exports: the catalogue as files for other programs.

import { api, download, query } from "./api.js";
import { button, el, field, fill, select } from "./dom.js";
import { fail, say } from "./messages.js";
import { loadFacets } from "./session.js";
import { species } from "./words.js";

const KINDS = [
  ["csv", "CSV", "One row a photograph, with its encounter and individual: for a spreadsheet, R or pandas."],
  ["wildbook", "Wildbook", "The standard import sheet of Wildbook (Flukebook): to bring the encounters into a shared catalogue."],
  ["camtrap-dp", "Camtrap DP", "A Camera Trap Data Package: deployments, media and observations, to archive or to publish through GBIF."],
  ["mark", "MARK", "Capture histories, one row an individual and one digit an occasion: an encounter history file for Program MARK."],
  ["rmark", "RMark", "The same histories as a table: for import.chdata of the R package RMark."],
];
const TIMED = ["mark", "rmark"];
const FIRST = 20; // messages that are shown

export async function showExports(main, route, signal) {
  const facets = await loadFacets(signal);
  const only = select([["", "All"], ...facets.species.map((value) => [value, species(value)])], "", { id: "exports-species" });
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Exports" }),
    el("p", { class: "total", text: "An animal is known where a person decided so, or where its photographs came with its name." })),
  el("div", { class: "exports-species" }, field("Species", only)),
  el("ul", { class: "exports" }, KINDS.map(([kind, title, text]) => {
    const occasions = TIMED.includes(kind)
      && select([["year", "Year"], ["month", "Month"], ["day", "Day"]], "year", { id: `occasions-${kind}` });
    const submitter = kind === "wildbook" && el("input", { id: "submitter", autocomplete: "off", spellcheck: "false" });
    const notes = el("div", { class: "notes", role: "status", data: { notes: kind } });
    const get = button("Download", async () => {
      get.disabled = true;
      try {
        const params = query({
          species: only.value, occasions: occasions ? occasions.value : "", submitter: submitter ? submitter.value.trim() : "",
        });
        await save(kind, params);
        fill(notes, describe(await api(`/exports/${kind}/messages${params}`), kind));
      } catch (error) {
        fail(error);
      } finally {
        get.disabled = false;
      }
    }, { data: { export: kind }, "aria-label": `Download ${title}` });
    return el("li", {}, el("div", {}, el("h2", { text: title }), el("p", { text }), notes),
      occasions && el("label", { class: "field" }, el("span", { class: "label", text: "Occasion" }), occasions),
    submitter && field("Your name in Wildbook", submitter), get);
  })));
}

/** What a person has to know of the file, before it goes to another program. */
function describe({ messages, total }, kind) {
  if (!total) return null;
  const heading = kind === "wildbook" ? "Wildbook will refuse this sheet:" : "In this file:";
  const more = total > FIRST ? [el("li", { text: `… and ${total - FIRST} more` })] : [];
  return [el("p", { text: heading }), el("ul", {}, messages.slice(0, FIRST).map((text) => el("li", { text })), more)];
}

async function save(kind, params) {
  const { blob, name } = await download(`/exports/${kind}${params}`);
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name || kind });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  say(`${name || kind} is in your downloads.`);
}
