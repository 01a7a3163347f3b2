// Keyboard shortcuts. Each page defines its own; they are off while the user types or a dialog is open.

import { button, el } from "./dom.js";
import { dialog } from "./messages.js";

const STORE = "happywhale.keys";
let bound = [];
const everywhere = [{ keys: ["?"], label: "This list of shortcuts", run: () => showKeys() }];

/** Binds the shortcuts of a page: `{keys: ["c"], label, run}`; with modifiers: `Ctrl+z`, `Shift+ArrowRight`. */
export function bindKeys(keys) {
  bound = keys;
}

const lettersOff = () => localStorage.getItem(STORE) === "off";

function typing(target) {
  if (target.isContentEditable || ["TEXTAREA", "SELECT"].includes(target.tagName)) return true;
  return target.tagName === "INPUT" && target.type !== "checkbox";
}

export function pressed(event) {
  const held = [event.ctrlKey || event.metaKey ? "Ctrl" : "", event.altKey ? "Alt" : ""].filter(Boolean);
  if (event.shiftKey && event.key.length > 1) held.push("Shift");
  return [...held, event.key.length === 1 ? event.key.toLowerCase() : event.key].join("+");
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || typing(event.target) || document.querySelector("dialog[open]")) return;
  const name = pressed(event);
  if (name.length === 1 && name !== "?" && lettersOff()) return;
  const binding = [...bound, ...everywhere].find((entry) => entry.keys.includes(name));
  if (!binding || (event.repeat && !binding.repeats)) return;
  event.preventDefault();
  binding.run(name);
});

const SHOWN = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };
const shown = (name) => name.split("+").map((part) => SHOWN[part] ?? part).join(" ");

export function showKeys() {
  if (document.querySelector("#keys")) return;
  const rows = [...bound, ...everywhere].map((entry) => el("tr", {},
    el("th", { scope: "row" }, (entry.shown ?? entry.keys).map((name) => el("kbd", { text: shown(name) }))),
    el("td", { text: entry.label })));
  const box = el("input", { type: "checkbox", id: "letters", checked: !lettersOff(),
    onChange: () => localStorage.setItem(STORE, box.checked ? "on" : "off") });
  dialog("Keyboard shortcuts", (close) => [
    el("table", { class: "keys" }, el("tbody", {}, rows)),
    el("label", { class: "check" }, box, "Enable single-letter and digit shortcuts"),
    el("div", { class: "buttons" }, button("Close", () => close(), { autofocus: true })),
  ], { id: "keys" });
}
