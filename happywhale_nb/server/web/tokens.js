// Creating and revoking access tokens. For admins.

import { api } from "./api.js";
import { button, el, field, fill, select } from "./dom.js";
import { confirmed, fail, say } from "./messages.js";
import { may, session } from "./session.js";
import { moment } from "./words.js";

const ROLES = [["read", "read: view and query"], ["review", "review: add and decide"], ["admin", "admin: everything, including tokens"]];

export async function showTokens(main, route, signal) {
  if (!may("tokens")) return void fill(main, el("div", { class: "empty" }, el("h1", { text: "Tokens" }), el("p", { text: "Only an admin can manage tokens." })));
  const name = el("input", { type: "text", id: "token-name", required: true, autocomplete: "off", maxlength: 80 });
  const kind = select(ROLES, "review", { id: "token-role" });
  const made = el("div", { id: "token-made", "aria-live": "polite" });
  const body = el("tbody");

  async function load() {
    const got = await api("/tokens", { signal });
    const tokens = got.tokens ?? got;
    fill(body, tokens.map((token) => el("tr", {}, el("th", { scope: "row", text: token.name }), el("td", { text: token.role }),
      el("td", { class: "soft", text: moment(token.created_at) }), el("td", {}, button("Revoke", () => revoke(token),
        { data: { revoke: token.id }, "aria-label": `Revoke the token of ${token.name}` })))),
    !tokens.length && el("tr", {}, el("td", { colspan: 4, class: "soft", text: "No tokens yet." })));
  }

  async function revoke(token) {
    const yes = await confirmed(`Revoke the token of ${token.name}?`, ["Its user is signed out immediately. Their decisions stay in the audit log."], "Revoke");
    if (!yes) return;
    try {
      await api(`/tokens/${token.id}`, { method: "DELETE" });
      say(`The token of ${token.name} was revoked.`);
      await load();
    } catch (error) {
      fail(error);
    }
  }

  /** Creates a token; if the name has or had one, asks whether it is the same user. */
  async function create(replace = false) {
    try {
      return await api("/tokens", { method: "POST", body: { name: name.value.trim(), role: kind.value, replace } });
    } catch (error) {
      if (error.status !== 409 || replace) throw error;
      const same = await confirmed(`Is it the same ${name.value.trim()}?`, [`${error.message}.`, "The new token replaces the other one, and its user can undo the decisions under this name."], "The same: replace");
      return same ? create(true) : null;
    }
  }

  async function make(event) {
    event.preventDefault();
    try {
      const token = await create();
      if (!token) return;
      fill(made, el("div", { class: "notice" }, el("p", { text: `Token of ${token.name}. It is shown only once:` }),
        el("p", {}, el("code", { text: token.token, id: "token-text" })),
        button("Copy", async () => {
          await navigator.clipboard.writeText(token.token).then(() => say("Copied."), () => say("Select the token and copy it by hand.", { kind: "error" }));
        }, { id: "token-copy" })));
      name.value = "";
      await load();
    } catch (error) {
      fail(error);
    }
  }

  await load();
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Tokens" }), !session.tokens && el("p", { class: "total",
    text: "This server runs without tokens: every user of this computer is an admin." })),
  el("form", { class: "row", onSubmit: make }, field("User or program", name), field("Role", kind),
    button("Create token", null, { type: "submit", class: "primary", id: "token-make" })),
  made, el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["Name", "Role", "Created", ""].map((text) => el("th", { scope: "col", text })))), body)));
}
