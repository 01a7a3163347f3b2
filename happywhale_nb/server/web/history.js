// A list of decisions, newest first: user, time, decision, answer, and a button to undo each.

import { api } from "./api.js";
import { button, el } from "./dom.js";
import { fail, forget, say } from "./messages.js";
import { changed, guard, may, session } from "./session.js";
import { percent, moment, sentence, told } from "./words.js";

const STANDS = new Set(["undo", "upload", "delete"]);

/** Decisions as an ordered list. `after(result)` is called after an undo. */
export function decisions(list, after, props = {}) {
  return el("ol", { class: "audit-log", ...props }, list.map((one) => entry(one, after)));
}

export function entry(decision, after) {
  const { encounter, answer_id: answer } = decision;
  const source = decision.rank ? `rank ${decision.rank}${decision.probability !== null && decision.probability !== undefined ? `, ${percent(decision.probability)}` : ""}` : "";
  return el("li", { data: { decision: decision.id, kind: decision.kind }, class: decision.undone_by ? "undone" : "" },
    el("div", { class: "what" },
      el("p", {}, el("span", { class: `kind ${decision.kind}`, text: decision.kind }), " ", words(decision),
        decision.undone_by && el("span", { class: "soft", text: " (undone)" })),
      decision.note && el("p", { class: "note", text: decision.note }),
      el("p", { class: "soft" }, el("b", { text: decision.user }), ` · ${moment(decision.at)}`,
        source && [" · ", answer && encounter ? el("a", { href: `#/encounter/${encounter.id}?answer=${answer}`, text: source }) : source])),
    undoing(decision, after));
}

/** The text of a decision, with links to its encounter and individuals. */
function words(decision) {
  const parts = decision.text ? linked(decision) : sentence(decision);
  return parts.map((part) => (Array.isArray(part) ? el("a", { href: `#/${part[0]}/${part[1].id}`, text: part[1].name }) : part));
}

/** The server's text, split at the names of the decision's encounter and individuals. */
function linked({ text, encounter, individual, other }) {
  const rows = [["encounter", encounter], ["individual", individual], ["individual", other]].filter(([, row]) => row?.name);
  let parts = [text];
  for (const row of rows.sort((a, b) => b[1].name.length - a[1].name.length)) {
    parts = parts.flatMap((part) => {
      const at = typeof part === "string" ? part.indexOf(row[1].name) : -1;
      return at < 0 ? [part] : [part.slice(0, at), row, part.slice(at + row[1].name.length)];
    });
  }
  return parts;
}

function undoing(decision, after) {
  if (decision.undone_by || !(decision.can_undo ?? !STANDS.has(decision.kind))) return null;
  const control = guard(button("Undo", async () => {
    control.disabled = true;
    try {
      await after(await undo(decision.id));
    } catch (error) {
      control.disabled = false;
      fail(error);
    }
  }, { data: { undo: decision.id }, "aria-label": `Undo: ${told(decision)}` }));
  if (may("decide") && !may("undo others") && decision.user !== session.user) {
    control.disabled = true;
    control.title = "Only an admin can undo decisions of other users.";
  }
  return control;
}

/** Undoes a decision, and shows a message. The error for a later decision that depends on it offers to undo that first. */
export async function undo(id) {
  let result;
  try {
    result = await api(`/decisions/${id}/undo`, { method: "POST", body: {} });
  } catch (error) {
    const later = error.status === 409 ? error.body.decision : null;
    if (later && later.id !== id) {
      const again = () => dispatchEvent(new CustomEvent("catalogue:again"));
      error.remedy = { label: "Undo that first", run: () => undo(later.id).then(again, fail) };
      error.message = `${error.message} (${told(later)}; ${later.user}, ${moment(later.at)})`;
    }
    throw error;
  }
  changed();
  forget(id);
  dispatchEvent(new CustomEvent("catalogue:undone", { detail: id }));
  say(result.decision?.text ? `${result.decision.text[0].toUpperCase()}${result.decision.text.slice(1)}.` : "Undone.");
  return result;
}
