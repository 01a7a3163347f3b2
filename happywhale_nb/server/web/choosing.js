// Dialogs to choose an individual or an encounter by name.

import { api, query } from "./api.js";
import { cropImage, el, field, fill, later } from "./dom.js";
import { cover } from "./individuals.js";
import { dialog, fail } from "./messages.js";
import { count, day, species } from "./words.js";

const MOST = 20;

/** Lets the user choose an individual, also by a former name. Returns it, or null.
 *  kind: the species to list for an empty search; except: numbers to exclude. */
export function chooseIndividual(title, { kind = "", except = [], id = "choose-q" } = {}) {
  return choosing(title, id, "Search by name", async (q) => {
    const got = await api(`/individuals${query({ q, species: q ? "" : kind, limit: MOST + except.length })}`);
    return { total: got.total, rows: got.individuals.filter((one) => one.active !== false && !except.includes(one.id)).map((one) => ({
      value: one, key: { into: one.id }, picture: cover(one.cover), name: one.name,
      about: [species(one.species), count(one.photos, "photograph"), one.known_as?.length && `also ${one.known_as.join(", ")}`].filter(Boolean).join(" · ") })) };
  }, "No individual has a name like this.");
}

/** Lets the user choose an encounter. Returns it, or null. */
export function chooseEncounter(title, except = []) {
  return choosing(title, "encounter-q", "Search by name, file or place", async (q) => {
    const got = await api(`/encounters${query({ q, limit: MOST + except.length })}`);
    return { total: got.total, rows: got.encounters.filter((one) => !except.includes(one.id)).map((one) => ({
      value: one, key: { encounter: one.id }, picture: one.photos[0] ? cropImage(one.photos[0], 160, "", { class: "whole" }) : null, name: one.name,
      about: [day(one.date), one.place, count(one.photos.length, "photograph"), one.individual?.name].filter(Boolean).join(" · ") })) };
  }, "No encounter matches.");
}

function choosing(title, id, label, find, none) {
  return dialog(title, (close) => {
    const list = el("ol", { class: "choices" });
    let run = 0;
    const search = async () => {
      const mine = ++run;
      try {
        const { rows, total } = await find(box.value.trim());
        if (mine !== run) return;
        fill(list, rows.slice(0, MOST).map((row) => el("li", {}, el("button", { type: "button", data: row.key, onClick: () => close(row.value) }, row.picture,
          el("span", {}, el("b", { text: row.name }), el("small", { text: row.about }))))),
        !rows.length && el("li", { class: "soft", text: box.value.trim() ? none : "None yet." }),
        total > MOST && el("li", { class: "soft", text: `${MOST} of ${total}: type more of the name.` }));
      } catch (error) {
        fail(error);
      }
    };
    const box = el("input", { type: "search", id, autofocus: true, autocomplete: "off", spellcheck: "false", onInput: later(search) });
    search();
    return [field(label, box), list];
  });
}
