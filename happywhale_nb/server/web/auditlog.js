// The audit log: every decision, newest first.

import { api, query } from "./api.js";
import { button, el, fill } from "./dom.js";
import { entry } from "./history.js";
import { fail } from "./messages.js";

export async function showAuditLog(main, route, signal) {
  const list = el("ol", { class: "audit-log", id: "audit-log" });
  const more = button("More", () => load().catch(fail), { id: "more", hidden: true });
  let cursor = "";
  async function load() {
    const got = await api(`/audit-log${query({ after: cursor, limit: 50 })}`, { signal });
    list.append(...got.decisions.map((one) => entry(one, again)));
    cursor = got.next;
    more.hidden = !cursor;
    if (!list.children.length) list.append(el("li", { class: "soft", text: "No decisions yet." }));
  }
  const again = () => { cursor = ""; list.replaceChildren(); return load(); };
  await load();
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Audit log" }),
    el("p", { class: "total", text: "All decisions, newest first. An undo is logged as a decision; nothing is erased." })),
  list, el("div", { class: "more" }, more));
}
