// Corrections: withdraw, put back, move and regroup photographs. All are logged in the history and can be undone.

import { api } from "./api.js";
import { chooseEncounter } from "./choosing.js";
import { goNext, remembered } from "./deciding.js";
import { button, cropImage, el, field, fill, select } from "./dom.js";
import { asking, confirmed, dialog, fail, say } from "./messages.js";
import { changed, guard, may } from "./session.js";
import { count } from "./words.js";

const REASONS = [["boat", "A boat"], ["empty sea", "Empty sea"], ["no animal", "No animal, for another reason"], ["mistake", "Added by mistake"]];
const BY = [["day", "Day"], ["burst", "Burst: photographs taken shortly after one another"], ["folder", "Folder"]];

function reasons() {
  const reason = select(REASONS, "mistake", { id: "withdraw-reason" });
  const note = el("input", { type: "text", maxlength: 500, autocomplete: "off", id: "withdraw-note" });
  return { value: () => ({ reason: reason.value, note: note.value.trim() }), nodes: [field("Reason", reason), field("Note", note)] };
}

const STAYS = "Withdrawn photographs are neither queries nor candidates. They stay in the catalogue under “Withdrawn” and can be put back.";

/** Withdraws the encounter of a view, and moves to the next one. */
export async function withdraw(view) {
  const { id, name, version } = view.encounter;
  const given = reasons();
  const result = await asking(`Withdraw ${name}?`, [el("p", { text: STAYS }), given.nodes], "Withdraw",
    () => api(`/encounters/${id}/withdraw`, { method: "POST", body: { version, ...given.value() } }).catch((error) => conflicted(view, error)), { id: "withdraw-yes" });
  if (!result?.decision) return;
  changed();
  remembered(result.decision, id, `${name} was withdrawn.`);
  await goNext(view);
}

/** Withdraws several encounters. Returns their number. */
export async function withdrawMany(encounters) {
  const given = reasons();
  const yes = await asking(`Withdraw ${count(encounters.length, "encounter")}?`, [el("p", { text: STAYS }), given.nodes], "Withdraw", async () => given.value(), { id: "withdraw-yes" });
  if (!yes) return 0;
  let number = 0;
  let last = null;
  try {
    for (const one of encounters) {
      last = await api(`/encounters/${one.id}/withdraw`, { method: "POST", body: { version: one.version, ...yes } });
      number += 1;
    }
  } catch (error) {
    fail(error);
  }
  changed();
  if (number === 1) remembered(last.decision, encounters[0].id, `${encounters[0].name} was withdrawn.`);
  else if (number) say(`${count(number, "encounter")} withdrawn; they are under “Withdrawn”.`);
  return number;
}

/** Puts the encounter of a view back. */
export async function putBack(view) {
  const result = await api(`/encounters/${view.encounter.id}/restore`, { method: "POST", body: {} });
  changed();
  say(`${view.encounter.name} was put back.`);
  view.accept(result.encounter);
  view.ask();
}

/** Handles a conflict: the dialog closes, and the view shows the other user's change. */
function conflicted(view, error) {
  if (error.status !== 409 || !error.body.encounter) throw error;
  view.conflict(error);
  return null;
}

/** Dialog for the photographs of an encounter: move to another one, withdraw, put back, delete. */
export async function photographs(view) {
  const { encounter } = view;
  const chosen = new Set();
  const what = await dialog(`Photographs of ${encounter.name}`, (close) => {
    const said = el("p", { class: "soft", role: "status" });
    const gone = (photo) => Boolean(photo.withdrawn);
    const picked = (state) => encounter.photos.filter((one) => chosen.has(one.id) && gone(one) === state);
    const acts = {
      fresh: button("To a new encounter", () => close("fresh"), { id: "move-new" }), other: button("To another encounter …", () => close("other"), { id: "move-other" }),
      out: button("Withdraw …", () => close("out"), { id: "photos-withdraw" }), back: button("Put back", () => close("back"), { id: "photos-back" }),
      away: may("delete") && button("Delete permanently …", () => close("away"), { id: "photos-delete" }),
    };
    const show = () => {
      const [here, out] = [picked(false), picked(true)];
      said.textContent = chosen.size ? `${count(chosen.size, "photograph")} chosen.` : "Choose photographs first.";
      acts.fresh.disabled = acts.other.disabled = acts.out.disabled = !here.length;
      acts.back.disabled = !out.length;
      if (acts.away) acts.away.disabled = !out.length || out.some((one) => !one.uploaded);
    };
    show();
    return [el("ul", { class: "shots choosing" }, encounter.photos.map((photo) => {
      const box = el("input", { type: "checkbox", data: { pick: photo.id }, onChange: () => { if (box.checked) chosen.add(photo.id); else chosen.delete(photo.id); show(); } });
      return el("li", {}, el("label", { title: photo.name }, box, cropImage(photo, 256, ""), el("small", { class: "file", text: photo.name }),
        photo.withdrawn && el("span", { class: "state withdrawn", text: photo.withdrawn })));
    })), said, el("div", { class: "buttons" }, Object.values(acts).filter(Boolean).map((node) => guard(node)))];
  }, { wide: true });
  const ids = [...chosen];
  if (what === "fresh") await move(view, ids, null);
  if (what === "other") {
    const target = await chooseEncounter(`Move ${count(ids.length, "photograph")} to …`, [encounter.id]);
    if (target) await move(view, ids, target);
  }
  if (what === "out") await withdrawPhotos(view, ids);
  if (what === "back") await each(view, encounter.photos.filter((one) => ids.includes(one.id) && one.withdrawn), (photo) => api(`/photos/${photo.id}/restore`, { method: "POST", body: {} }), "put back");
  if (what === "away" && await confirmed("Delete permanently?", [`${count(ids.length, "file")} will be deleted from the catalogue. This cannot be undone.`], "Delete permanently")) {
    await each(view, encounter.photos.filter((one) => ids.includes(one.id)), (photo) => api(`/photos/${photo.id}`, { method: "DELETE" }), "deleted");
  }
}

async function move(view, photos, target) {
  const { encounter } = view;
  const ids = photos.filter((id) => !encounter.photos.find((one) => one.id === id)?.withdrawn);
  const versions = { [encounter.id]: encounter.version, ...(target ? { [target.id]: target.version } : {}) };
  try {
    const result = await api("/photos/move", { method: "POST", body: { photo_ids: ids, encounter_id: target?.id ?? null, versions, note: "" } });
    const to = result.encounters[0];
    changed();
    remembered(result.decision, encounter.id, `${count(ids.length, "photograph")} moved to ${to.name}.`);
    const here = result.encounters.find((one) => one.id === encounter.id);
    if (here?.photos.length) { view.accept(here); if (!here.individual) view.ask(); } else location.hash = `#/encounter/${to.id}`;
  } catch (error) {
    if (error.status === 409 && error.body.encounter) view.conflict(error); else fail(error);
  }
}

async function withdrawPhotos(view, ids) {
  const given = reasons();
  const yes = await asking(`Withdraw ${count(ids.length, "photograph")}?`, [el("p", { text: STAYS }), given.nodes], "Withdraw", async () => given.value(), { id: "withdraw-yes" });
  if (!yes) return;
  let { version } = view.encounter;
  await each(view, view.encounter.photos.filter((one) => ids.includes(one.id) && !one.withdrawn), async (photo) => {
    const result = await api(`/photos/${photo.id}/withdraw`, { method: "POST", body: { version, ...yes } });
    version = result.encounter?.version ?? version;
    return result;
  }, "withdrawn");
}

/** Runs an action for each photograph in turn, and shows how many succeeded, also after an error. */
async function each(view, photos, act, done) {
  let number = 0;
  let last = null;
  try {
    for (const photo of photos) { last = await act(photo); number += 1; }
  } catch (error) {
    fail(error);
  }
  if (!number) return;
  changed();
  remembered(number === 1 && done !== "deleted" ? last.decision : null, view.encounter.id, `${count(number, "photograph")} ${done}.`);
  dispatchEvent(new CustomEvent("catalogue:again"));
}

/** The controls for a grouping rule; `value` is the rule in the server's syntax. */
function grouping() {
  const by = select(BY, "day", { id: "group-by", onChange: () => show() });
  const minutes = el("input", { type: "number", id: "group-minutes", min: 1, max: 1440, step: 1, value: 10, required: true });
  const held = field("Maximum minutes between two photographs of a burst", minutes);
  const show = () => { held.hidden = by.value !== "burst"; minutes.disabled = held.hidden; };
  show();
  return { nodes: [field("One encounter per", by), held], by, minutes, value: () => (by.value === "burst" ? `burst:${Number(minutes.value) || 10}` : by.value) };
}

/** Regroups the photographs of undecided encounters. Returns the result, or null. */
export async function regroup(encounters) {
  const ids = encounters.map((one) => one.id);
  const versions = Object.fromEntries(encounters.map((one) => [one.id, one.version]));
  const how = grouping();
  const preview = el("div", { role: "status", id: "regroup-preview" });
  const ask = (dry) => api("/encounters/regroup", { method: "POST", body: { encounter_ids: ids, by: how.value(), dry_run: dry, versions: dry ? {} : versions, note: "" } });
  let run = 0;
  const show = async () => {
    const mine = ++run;
    fill(preview, el("p", { class: "soft loading", text: "Computing the groups …" }));
    try {
      const { groups } = await ask(true);
      if (mine !== run) return;
      fill(preview, el("p", {}, el("b", { text: `${count(encounters.length, "encounter")} would become ${groups.length}` })),
        el("ul", { class: "groups" }, groups.slice(0, 12).map((group) => el("li", { text: `${group.label || "No date"}: ${count(group.photos.length, "photograph")}` })),
          groups.length > 12 && el("li", { class: "soft", text: `and ${groups.length - 12} more` })));
    } catch (error) {
      if (mine === run) fill(preview, el("p", { class: "error", text: error.message }));
    }
  };
  how.by.addEventListener("change", show);
  how.minutes.addEventListener("change", show);
  const result = await asking(`Regroup ${count(encounters.reduce((sum, one) => sum + one.photos.length, 0), "photograph")}`, (close) => { show(); return [
    el("p", { text: "An encounter is one animal met once. Undecided encounters can be regrouped, and you can undo this." }), how.nodes, preview]; }, "Regroup", () => ask(false), { id: "regroup-yes" });
  if (!result) return null;
  changed();
  if (result.decision) remembered(result.decision, ids[0], `Grouped into ${count(result.groups.length, "encounter")}.`);
  else say("The photographs are already grouped like this.");
  return result;
}
