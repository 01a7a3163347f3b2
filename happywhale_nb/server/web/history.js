// Decisions as a list, newest first: who, when, what, from which answer; each can be undone.

import { api } from "./api.js";
import { button, el } from "./dom.js";
import { fail, say } from "./messages.js";
import { changed, guard, may, session } from "./session.js";
import { percent, moment, sentence } from "./words.js";

const STANDS = new Set(["undo", "upload"]);

/** Decisions as an ordered list. `after(result)` is called when one was undone. */
export function decisions(list, after, props = {}) {
  return el("ol", { class: "audit-log", ...props }, list.map((one) => entry(one, after)));
}

export function entry(decision, after) {
  const { encounter, answer_id: answer } = decision;
  const source = decision.rank ? `rank ${decision.rank}${decision.probability !== null && decision.probability !== undefined ? `, ${percent(decision.probability)}` : ""}` : "";
  return el("li", { data: { decision: decision.id, kind: decision.kind }, class: decision.undone_by ? "undone" : "" },
    el("div", { class: "what" },
      el("p", {}, el("span", { class: `kind ${decision.kind}`, text: decision.kind }), " ", words(decision),
        decision.undone_by && el("span", { class: "soft", text: ` (undone by ${decision.undone_by})` })),
      decision.note && el("p", { class: "note", text: decision.note }),
      el("p", { class: "soft" }, el("b", { text: decision.user }), ` · ${moment(decision.at)}`,
        source && [" · ", answer && encounter ? el("a", { href: `#/encounter/${encounter.id}?answer=${answer}`, text: source }) : source])),
    undoing(decision, after));
}

function words(decision) {
  return sentence(decision).map((part) => (Array.isArray(part) ? el("a", { href: `#/${part[0]}/${part[1].id}`, text: part[1].name }) : part));
}

function undoing(decision, after) {
  if (decision.undone_by || STANDS.has(decision.kind)) return null;
  const control = guard(button("Undo", async () => {
    control.disabled = true;
    try {
      await after(await undo(decision.id));
    } catch (error) {
      control.disabled = false;
      fail(error);
    }
  }, { data: { undo: decision.id }, "aria-label": `Undo decision ${decision.id}` }));
  if (may("review") && !may("admin") && decision.user !== session.user) {
    control.disabled = true;
    control.title = "Only an admin may undo what others decided.";
  }
  return control;
}

/** Undoes a decision and says so. */
export async function undo(id) {
  const result = await api(`/decisions/${id}/undo`, { method: "POST", body: {} });
  changed();
  say("Undone.");
  return result;
}
