// Messages at the foot of the page, and dialogs.

import { button, el, fill } from "./dom.js";

const region = () => document.getElementById("messages");

/** Shows a message. action: `{label, run}`, a button next to it. A message of kind "error" stays until it is closed or
 *  the view changes. about: the number of its decision. A new message replaces the previous one of its kind. */
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

/** Removes the errors of the previous view. */
export const hush = () => region().querySelectorAll('[data-message="error"]').forEach((node) => node.remove());

/** Removes the messages about a decision after it is undone. */
export const forget = (decision) => region().querySelectorAll(`[data-about="${decision}"]`).forEach((node) => node.remove());

/** Shows an error; aborted requests are ignored. action: as for `say`. */
export function fail(error, action = null) {
  if (error?.name === "AbortError" || error?.status === 401) return;
  if (!("status" in (error ?? {}))) console.error(error);
  say(error?.message || String(error), { kind: "error", action: action?.label ? action : error?.remedy ?? null });
}

/** Opens a dialog. make(close) returns its content; Escape and × close it with null. Returns the value of `close`. */
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

/** Opens a dialog with a form; submitting calls act(). If that fails, the dialog keeps its input and shows the error.
 *  remedy(error, close) may return buttons for the error. Returns the result of act(), or null. */
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

/** Asks for confirmation. Returns whether the user agreed. */
export async function confirmed(title, paragraphs, yes) {
  return Boolean(await dialog(title, (close) => [
    paragraphs.map((text) => el("p", { text })),
    el("div", { class: "buttons" },
      button("Cancel", () => close()),
      button(yes, () => close(true), { class: "primary", autofocus: true, id: "dialog-yes" })),
  ]));
}

/** Shows at the head of the page what the page waits for; "" hides it. */
export function waiting(text) {
  const node = document.getElementById("waiting");
  node.hidden = !text;
  node.textContent = text;
}
