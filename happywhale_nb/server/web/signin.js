// Signing in with a token.

import { api } from "./api.js";
import { button, el, field, fill } from "./dom.js";
import { bindKeys } from "./keys.js";

/** Shows the sign-in form; `done` is called after the server accepts the token. */
export function showSignIn(main, done) {
  document.body.classList.add("signed-out");
  document.title = "Sign in";
  document.querySelectorAll("dialog[open]").forEach((node) => node.close());
  bindKeys([]);
  const token = el("input", { type: "password", id: "token", autocomplete: "current-password", required: true, spellcheck: "false" });
  const said = el("p", { class: "error", role: "alert", id: "sign-in-error" });
  const go = button("Sign in", null, { type: "submit", class: "primary", id: "sign-in" });
  const form = el("form", { class: "sign-in", onSubmit: async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      await api("/session", { method: "POST", body: { token: token.value.trim() } });
      await done();
    } catch (error) {
      said.textContent = error.message;
      token.select();
    } finally {
      go.disabled = false;
    }
  } }, el("h1", { text: "Sign in" }), el("p", { class: "soft", text: "This catalogue requires a token. Ask its administrator for one." }),
  field("Token", token), said, go);
  fill(main, form);
  token.focus();
}

export const signOut = () => api("/session", { method: "DELETE" });
