// What the page says: short messages at the foot, and dialogs.

import { button, el, fill } from "./dom.js";

const region = () => document.getElementById("messages");

/** Says a sentence. action: `{label, run}` as a button beside it. kind "error" stays until it is closed or the view
 *  is left. about: the number of the decision that it tells of. A new message takes the place of the one before of its
 *  kind: two at once are enough to read. */
export function say(text, { action = null, kind = "info", about = null, seconds = action ? 12 : 6 } = {}) {
  const node = el("div", { class: `message ${kind}`, data: { message: kind, about: about ?? "" }, role: kind === "error" ? "alert" : null });
  let timer = 0;
  const close = () => { clearTimeout(timer); node.remove(); };
  const wait = () => { clearTimeout(timer); if (kind !== "error") timer = setTimeout(close, 1000 * seconds); };
  fill(node, el("p", { text }),
    action && button(action.label, () => { close(); action.run(); }, { data: { action: "message" }, key: action.key }),
    button("×", close, { class: "plain close", "aria-label": "Close the message" }));
  for (const name of ["mouseenter", "focusin"]) node.addEventListener(name, () => clearTimeout(timer));
  for (const name of ["mouseleave", "focusout"]) node.addEventListener(name, wait);
  region().querySelectorAll(`[data-message="${kind}"]`).forEach((other) => other.remove());
  region().append(node);
  wait();
  return close;
}

/** Takes away errors of a view that is left. */
export const hush = () => region().querySelectorAll('[data-message="error"]').forEach((node) => node.remove());

/** Takes away what is said about a decision, once it is undone. */
export const forget = (decision) => region().querySelectorAll(`[data-about="${decision}"]`).forEach((node) => node.remove());

/** Says why something failed; what was given up on purpose is not worth a word. action: as of `say`. */
export function fail(error, action = null) {
  if (error?.name === "AbortError" || error?.status === 401) return;
  if (!("status" in (error ?? {}))) console.error(error);
  say(error?.message || String(error), { kind: "error", action: action?.label ? action : error?.remedy ?? null });
}

/** A dialog. make(close) answers its content; Escape and the × close it with null. Answers what it was closed with. */
export function dialog(title, make, { wide = false, id = "" } = {}) {
  return new Promise((done) => {
    const back = document.activeElement;
    const heading = el("h2", { text: title, id: "dialog-title" });
    const node = el("dialog", { class: wide ? "wide" : "", id: id || null, "aria-labelledby": "dialog-title" });
    let result = null;
    const close = (value = null) => { result = value; node.close(); };
    const shut = button("×", () => close(), { class: "plain close", "aria-label": "Close" });
    node.append(el("div", { class: "dialog-head" }, heading, shut), el("div", { class: "dialog-body" }, make(close, node)));
    node.addEventListener("close", () => {
      node.remove();
      back?.focus?.();
      done(result);
    });
    document.body.append(node);
    node.showModal();
    node.querySelector("[autofocus]")?.focus();
  });
}

/** A dialog with a form. act() does what the form asks for; when it fails, the dialog stays with all that was typed, and
 *  says why. remedy(error, close) may answer buttons that help. Answers what act() answered, or null. */
export function asking(title, content, yes, act, { id = "dialog-yes", wide = false, remedy = () => null } = {}) {
  return dialog(title, (close) => {
    const said = el("div", { class: "error", role: "alert", id: "dialog-error" });
    const go = button(yes, null, { type: "submit", class: "primary", id });
    const submit = async (event) => {
      event.preventDefault();
      if (go.disabled) return;
      go.disabled = true;
      said.replaceChildren();
      try {
        close((await act()) ?? true);
      } catch (error) {
        if (error?.name === "AbortError" || error?.status === 401) return void close();
        if (!("status" in (error ?? {}))) console.error(error);
        fill(said, el("p", { text: error.message }), remedy(error, close));
      } finally {
        go.disabled = false;
      }
    };
    return el("form", { onSubmit: submit }, typeof content === "function" ? content(close) : content, said,
      el("div", { class: "buttons" }, button("Cancel", () => close()), go));
  }, { wide });
}

/** Asks before something that reaches far. Answers whether it shall be done. */
export async function confirmed(title, paragraphs, yes) {
  return Boolean(await dialog(title, (close) => [
    paragraphs.map((text) => el("p", { text })),
    el("div", { class: "buttons" },
      button("Cancel", () => close()),
      button(yes, () => close(true), { class: "primary", autofocus: true, id: "dialog-yes" })),
  ]));
}

/** Shows at the head of the page what is being waited for; empty: nothing. */
export function waiting(text) {
  const node = document.getElementById("waiting");
  node.hidden = !text;
  node.textContent = text;
}
