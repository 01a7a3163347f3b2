// What the page says: short messages at the foot, and dialogs.

import { button, el, fill } from "./dom.js";

const region = () => document.getElementById("messages");

/** Says a sentence. action: `{label, run}` as a button beside it. kind "error" stays until it is closed. */
export function say(text, { action = null, kind = "info", seconds = action ? 12 : 6 } = {}) {
  const node = el("div", { class: `message ${kind}`, data: { message: kind }, role: kind === "error" ? "alert" : null });
  let timer = 0;
  const close = () => { clearTimeout(timer); node.remove(); };
  const wait = () => { if (kind !== "error") timer = setTimeout(close, 1000 * seconds); };
  fill(node, el("p", { text }),
    action && button(action.label, () => { close(); action.run(); }, { data: { action: "message" }, key: action.key }),
    button("×", close, { class: "plain close", "aria-label": "Close the message" }));
  for (const name of ["mouseenter", "focusin"]) node.addEventListener(name, () => clearTimeout(timer));
  for (const name of ["mouseleave", "focusout"]) node.addEventListener(name, wait);
  const others = [...region().children];
  if (others.length > 2) others[0].remove();
  region().append(node);
  wait();
  return close;
}

/** Says why something failed; what was given up on purpose is not worth a word. */
export function fail(error) {
  if (error?.name === "AbortError" || error?.status === 401) return;
  if (!("status" in (error ?? {}))) console.error(error);
  say(error?.message || String(error), { kind: "error" });
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
