// Building the page. Text is always set as text, never as markup, so user input cannot inject HTML.

const LISTENER = /^on([A-Z].*)$/;

/** Makes an element. props: attributes (false and null are omitted, true is empty), `class`, `text`, `data` (data-…),
 *  `style` (an object), `onClick` etc. Children: nodes, strings, arrays of these; null is omitted. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    const listener = LISTENER.exec(name);
    if (listener) node.addEventListener(listener[1].toLowerCase(), value);
    else if (name === "text") node.textContent = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "style") for (const [key, what] of Object.entries(value)) node.style.setProperty(key, what);
    else if (name === "value" && "value" in node) node.value = value;
    else if (name === "checked") node.checked = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(node, child);
    else if (child !== null && child !== undefined && child !== false) node.append(child);
  }
}

/** Replaces all children of a node. */
export function fill(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

/** Makes a button. props as for `el`; `key`: its keyboard shortcut, shown next to the text. */
export function button(text, onClick, { key = "", ...props } = {}) {
  return el("button", { type: "button", onClick, "aria-keyshortcuts": key || null, ...props },
    el("span", { text }), key && el("kbd", { text: key, "aria-hidden": "true" }));
}

/** Makes a labelled control; the label is above it. */
export function field(label, control, hint = "") {
  const text = el("span", { class: "label", text: label });
  return el("label", { class: "field" }, text, control, hint && el("small", { text: hint }));
}

/** Makes a select from `[value, text]` pairs. */
export function select(options, value, props = {}) {
  const node = el("select", props, options.map(([key, text]) => el("option", { value: key, text })));
  node.value = value;
  if (value && node.value !== value) node.append(el("option", { value, text: value, selected: true }));
  return node;
}

/** Makes a text field that suggests known values. */
export function proposing(name, values, props = {}) {
  const list = el("datalist", { id: `list-${name}` }, values.map((value) => el("option", { value })));
  return [el("input", { type: "text", list: list.id, autocomplete: "off", ...props }), list];
}

/** Makes an image of the network's crop, at the aspect ratio of the photograph. */
export function cropImage(photo, side, alt, props = {}) {
  const aspect = photo.crop?.aspect || 1;
  return el("img", { src: cropAddress(photo.id, side, photo.crop), alt, loading: "lazy", decoding: "async",
    onError: (event) => event.target.replaceWith(el("span", { class: "nobody", text: "Not found", title: photo.name })),
    style: { "--aspect": String(aspect) }, ...props });
}

/** The URL of a crop. It contains the box, so that the browser's cache does not return the crop of an old box. */
export function cropAddress(id, side, crop = null) {
  const box = crop?.box ? `&box=${crop.box.map(Math.round).join("-")}` : "";
  return `/api/photos/${id}/crop?side=${side}${box}`;
}

/** Debounces an action: it runs `ms` milliseconds after the last call. */
export function later(action, ms = 250) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), ms);
  };
}
