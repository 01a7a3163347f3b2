// The catalogue's web page: routes, navigation, header and footer.
//
// Every view is a route after the #, so reloads and links lead to the same view:
//   #/queue  #/encounter/ID  #/individuals  #/individual/ID  #/add  #/audit-log  #/exports  #/tokens
// An encounter's URL may contain an answer (?answer=ID) and filters of its candidates
// (species, side, place, since, until); the queue's URL contains its filters (also state and q).
//
// Selectors for tests:
//   sign-in       #token #sign-in #sign-out            header   #catalogue-name #who #nav [data-page=queue|…]
//   messages      #messages [data-message=info|error], its button [data-action=message]; #waiting while the model loads
//   filters       #queue-state input[value=…], #queue-species -side -place -since -until -q, and the same with
//                 #candidates-…; chips [data-chip=KEY|all]
//   queue         #total, #queue [data-encounter=ID], #more
//   encounter     #encounter [data-state], [data-version]; #confirm #reject #new #new-name #new-confirm #new-species
//                 #new-known #new-is-known #new-alike #someone #someone-q #unsure #next #back #note; [data-flip="-1"|"1"];
//                 #photographs #move-new #move-other #photos-withdraw #photos-back; #withdraw #withdraw-yes #put-back #regroup; #heat #zoom; #query-photo #match-photo (img), .heatmap (img);
//                 #candidates [data-candidate=RANK][aria-current]; #photos [data-photo=ID]; #filters-note
//                 #edit #edit-save #draw #box-save #ask; #conflict; #history
//   add           #drop #files #folder #group-one #group-each #group-folder; #add-date #add-place #add-side
//                 #add-species #add-name; #send #progress; #failures [data-failed], #retry; #sent [data-encounter=ID]
//   individuals   #individuals [data-individual=ID], #individuals-q #individuals-species; on the page of one:
//                 #rename #merge #merge-q [data-into=ID] #split [data-split=ID]; #history [data-decision=ID] [data-undo=ID]
//   audit-log     #audit-log [data-decision=ID] [data-undo=ID]       exports  [data-export=csv|wildbook|camtrap-dp|mark], then [data-take], [data-photos]
//   tokens        #token-name #token-role #token-make #token-made #token-copy [data-revoke=ID]
//   footer        #about: encoder and licence, [data-commercial=no]
//   dialogs       dialog[open], #dialog-yes, #zoom-view, #box-view, #keys

import { showAdd } from "./add.js";
import { showAuditLog } from "./auditlog.js";
import { api, passing } from "./api.js";
import { button, el, fill } from "./dom.js";
import { showEncounter } from "./encounter.js";
import { showExports } from "./exports.js";
import { showIndividual } from "./individual.js";
import { showIndividuals } from "./individuals.js";
import { bindKeys, showKeys } from "./keys.js";
import { fail, hush, waiting } from "./messages.js";
import { showQueue } from "./queue.js";
import { loadSession, may, session } from "./session.js";
import { showSignIn, signOut } from "./signin.js";
import { showTokens } from "./tokens.js";
import { day, role } from "./words.js";

const VIEWS = {
  queue: ["Queue", showQueue], encounter: ["Encounter", showEncounter], individuals: ["Individuals", showIndividuals],
  individual: ["Individual", showIndividual], add: ["Add", showAdd], "audit-log": ["Audit log", showAuditLog],
  exports: ["Exports", showExports], tokens: ["Tokens", showTokens],
};
const NAV = ["queue", "individuals", "add", "audit-log", "exports", "tokens"];
const main = document.getElementById("main");
let leave = null;
let shown = location.hash;

/** Parses `#/encounter/12?answer=3` into view, id and params. */
function route() {
  const [path, params = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view = "", id = ""] = path.split("/");
  return { view: VIEWS[view] ? view : "queue", id: Number(id) || null, params: new URLSearchParams(params) };
}

async function show() {
  const now = route();
  shown = location.hash;
  leave?.abort(new DOMException("left", "AbortError"));
  leave = new AbortController();
  const { signal } = leave;
  const [title, view] = VIEWS[now.view];
  bindKeys([]);
  hush();
  document.querySelectorAll("dialog[open]").forEach((node) => node.close());
  document.title = `${title} – ${session.catalogue.name}`;
  showNav(now.view);
  fill(main, el("p", { class: "soft loading", text: "Loading …" }));
  main.dataset.view = now.view;
  scrollTo(0, 0);
  try {
    await view(main, now, signal);
  } catch (error) {
    if (signal.aborted || error.status === 401) return;
    if (!("status" in error)) console.error(error);
    fill(main, el("div", { class: "empty", role: "alert" }, el("h1", { text: error.status === 404 ? "Not found" : "Something went wrong" }),
      el("p", { text: error.message }), el("div", { class: "buttons" }, passing(error) || !("status" in error) || error.status >= 500 ? button("Try again", show, { class: "primary" }) : null,
        el("a", { class: "button", href: "#/queue", text: "Go to the queue" }), el("a", { class: "button", href: "#/individuals", text: "Go to the individuals" }))));
  }
}

function showNav(current) {
  const pages = NAV.filter((name) => (name === "tokens" ? may("tokens") : name === "add" ? may("decide") : true));
  const on = { encounter: "queue", individual: "individuals" }[current] ?? current;
  fill(document.getElementById("nav"), pages.map((name) => el("a",
    { href: `#/${name}`, data: { page: name }, "aria-current": name === on ? "page" : null }, VIEWS[name][0],
    name === "queue" && session.catalogue.undecided > 0 && el("b", { class: "number", text: session.catalogue.undecided, title: "undecided" }))));
}

function showHeader() {
  document.getElementById("catalogue-name").textContent = session.catalogue.name || "Catalogue";
  fill(document.getElementById("who"), el("span", { title: `Role of your token: ${session.role}` }, session.user, el("small", { text: role(session.role) })),
    button("?", showKeys, { class: "plain help", "aria-label": "Keyboard shortcuts", title: "Keyboard shortcuts (?)" }),
    session.tokens && button("Sign out", () => signOut().then(start, fail), { class: "plain", id: "sign-out" }));
  showAbout(session.catalogue.encoder);
  showNav(route().view);
}

/** Shows the encoder, its source and its licence; nothing for the lab's own network. */
function showAbout(encoder) {
  const node = document.getElementById("about");
  const web = /^https?:\/\//.test(encoder?.source ?? "");
  node.hidden = !encoder?.text;
  fill(node, encoder?.text && [el("span", { text: `Encoder: ${encoder.name}` }), el("span", { text: `Licence: ${encoder.licence || "not stated"}` }),
    !encoder.commercial && el("b", { data: { commercial: "no" }, text: `Not for commercial use${encoder.accepted ? `, accepted on ${day(encoder.accepted)}` : ""}` }),
    encoder.source && (web ? el("a", { href: encoder.source, rel: "noreferrer", text: encoder.source }) : el("span", { text: `Source: ${encoder.source}` })),
    ...encoder.boxes.map((text) => el("span", { text }))]);
}

async function start() {
  try {
    await loadSession();
  } catch (error) {
    if (error.status === 401) return;
    fill(main, el("div", { class: "empty", role: "alert" }, el("h1", { text: "No response" }), el("p", { text: error.message }), button("Try again", start)));
    return;
  }
  document.body.classList.remove("signed-out");
  lookForPhotos();
  await show();
}

/** Shows missing photographs and other damage after the start; the page does not wait for this. */
async function lookForPhotos() {
  const node = document.getElementById("missing");
  try {
    const [{ missing, names, text }, { damage }] = await Promise.all([api("/missing-photos"), api("/health")]);
    const other = damage.filter((line) => !missing || !line.startsWith("files: "));
    node.hidden = !missing && !other.length;
    fill(node, !node.hidden && [
      missing > 0 && el("p", {}, el("b", { text }), `. The first: ${names.join(", ")}`),
      ...other.map((line) => el("p", {}, el("b", { text: line }), ". See `happywhale catalogue check`")),
      button("×", () => { node.hidden = true; }, { class: "plain close", "aria-label": "Close" })]);
  } catch {
    node.hidden = true;  // other requests report such errors
  }
}

addEventListener("hashchange", () => {
  if (location.hash !== shown && !document.body.classList.contains("signed-out")) show();
});
addEventListener("catalogue:session", showHeader);
addEventListener("catalogue:again", show);
addEventListener("catalogue:waiting", (event) => waiting(event.detail));
addEventListener("catalogue:signin", () => {
  leave?.abort(new DOMException("signed out", "AbortError"));
  if (!document.body.classList.contains("signed-out")) showSignIn(main, start);
});
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
start();
