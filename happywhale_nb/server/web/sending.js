// Uploads encounters one after the other, shows the progress, and keeps failed ones for a retry.

import { api, passing, upload } from "./api.js";
import { button, el, fill } from "./dom.js";
import { folderOf } from "./files.js";
import { remembered } from "./deciding.js";
import { changed } from "./session.js";
import { bytes, count } from "./words.js";

const MOST_FILES = 50;  // per request; a larger encounter takes several
const MOST_BYTES = 150e6;

/** The part of the page that uploads. `done(files)` is called after files are stored, `busy()` when an upload starts
 *  or ends. Failures stay listed by file, with the server's reason. */
export function sender(signal, { done, busy }) {
  const bar = el("progress", { id: "progress", max: 1, value: 0, "aria-label": "Sent" });
  const progress = el("p", { class: "total", role: "status" });
  const moving = el("div", { class: "sending", hidden: true }, progress, bar);
  const failures = el("div", { id: "failures", role: "alert" });
  const links = el("div", { id: "sent" });
  const node = el("div", {}, moving, failures, links);
  const sent = [];
  let failed = [];  // {group, fields, reason}
  let running = false;

  const hold = (event) => { if (running || failed.length) event.preventDefault(); };
  addEventListener("beforeunload", hold);
  signal.addEventListener("abort", () => { if (!running) removeEventListener("beforeunload", hold); });

  /** Uploads encounters. by: rule by which the server groups them afterwards ("day", "burst:10"); "": none. */
  async function send(groups, fields, by = "") {
    if (running) return [];
    running = true;
    busy();
    const size = (group) => group.files.reduce((sum, file) => sum + file.size, 0);
    const total = groups.reduce((sum, group) => sum + size(group), 0) || 1;
    const arrived = [];
    let before = 0;
    const show = (now, index) => {
      bar.value = Math.min(1, (before + now) / total);
      progress.textContent = `Sending encounter ${index + 1} of ${groups.length}: ${bytes(before + now)} of ${bytes(total)}`;
    };
    moving.hidden = false;
    try {
      for (const [index, group] of groups.entries()) {
        let into = group.into ?? null;
        let gone = 0;
        const parts = chunks(group.files);
        for (const [at, files] of parts.entries()) {
          show(gone, index);
          try {
            const path = into ? `/encounters/${into}/photos` : "/encounters";
            const got = await upload(path, form(files, into ? { side: fields.side } : { ...fields, name: group.name }),
              { progress: (now) => show(gone + Math.min(now, size({ files })), index) });
            into = got.id;
            for (const list of [sent, arrived]) { const known = list.findIndex((one) => one.id === got.id); list.splice(known < 0 ? list.length : known, known < 0 ? 0 : 1, got); }
            done(files);
            gone += size({ files });
          } catch (error) {
            failed.push({ group: { name: group.name, files: parts.slice(at).flat(), into }, fields, by, reason: error.message, again: passing(error) || error.status >= 500 });
            showFailures();
            break;
          }
        }
        before += size(group);
      }
      if (by && arrived.length) await groupSent(arrived, by);
    } finally {
      running = false;
      moving.hidden = true;
      changed();
      showSent();
      busy();
      if (signal.aborted && !failed.length) removeEventListener("beforeunload", hold);
    }
    return arrived;
  }

  /** Groups the uploaded photographs on the server; after an error they stay as they were sent. */
  async function groupSent(arrived, by) {
    progress.textContent = "Grouping …";
    try {
      const versions = Object.fromEntries(arrived.map((one) => [one.id, one.version]));
      const result = await api("/encounters/regroup", { method: "POST", body: { encounter_ids: arrived.map((one) => one.id), by, dry_run: false, versions, note: "" } });
      if (!result.decision) {
        fill(failures, el("section", { class: "notice", id: "not-grouped" }, el("p", { text: `${arrived.length > 1 ? "Each folder is one encounter" : "They are one encounter"}: ${by === "day" ? "its photographs are of one day, or their dates are unknown" : "there is no longer gap between its photographs, or their times are unknown"}. If it shows several animals, open it and move photographs to a new one (“Photographs …”).` })));
        return;
      }
      sent.splice(sent.length - arrived.length, arrived.length, ...result.encounters.filter((one) => one.photos.length));
      remembered(result.decision, null, `Grouped into ${count(result.groups.length, "encounter")}.`);
    } catch (error) {
      fill(failures, el("section", { class: "notice" }, el("h2", { text: "The photographs were stored but not grouped" }), el("p", { text: `${error.message}` }),
        el("p", { text: "Choose the new encounters in the queue with “Select” and regroup them." })));
    }
  }

  /** The files named in the server's reason, or else all of the encounter. */
  const named = ({ group, reason }) => { const files = group.files.filter((file) => reason.includes(file.name)); return files.length ? files : group.files; };

  function showFailures() {
    const again = (list) => { failed = failed.filter((one) => !list.includes(one)); showFailures(); return Promise.all([list.reduce((wait, one) => wait.then(() => send([one.group], one.fields, one.by)), Promise.resolve())]); };
    fill(failures, failed.length > 0 && el("section", { class: "notice" },
      el("h2", { text: `${count(failed.length, "encounter")} failed` }),
      el("ul", {}, failed.map((one) => {
        const bad = named(one);
        const rest = one.group.files.filter((file) => !bad.includes(file));
        return el("li", { data: { failed: bad.map((file) => file.name).join("|") } }, el("b", { class: "file", text: bad.map((file) => file.name).join(", ") }), el("p", { text: one.reason }),
          el("div", { class: "buttons" }, one.again && button("Retry", () => again([one]), { data: { retry: "" } }),
            rest.length > 0 && button(`Send the other ${rest.length}`, () => { one.group.files = rest; done(bad); again([one]); }),
            button("Remove", () => { failed = failed.filter((other) => other !== one); done(bad); showFailures(); }, { class: "plain" })));
      })),
      failed.filter((one) => one.again).length > 1 && button("Retry all", () => again(failed.filter((one) => one.again)), { id: "retry-all", class: "primary" })));
    const first = failures.querySelector("li [data-retry]");
    if (first) first.id = "retry";
  }

  function showSent() {
    fill(links, sent.length > 0 && el("section", { class: "notice good" }, el("p", { text: `${count(sent.length, "encounter")} added` }),
      el("ul", { class: "inline" }, sent.map((one) => el("li", {}, el("a", { href: `#/encounter/${one.id}`, data: { encounter: one.id }, text: `${one.name} (${one.photos.length})` })))),
      el("p", {}, el("a", { href: "#/queue", text: "Go to the queue" }))));
  }

  return { node, send, running: () => running };
}

/** Splits files into parts within the limits of one request. */
function chunks(files) {
  const parts = [];
  let held = 0;
  for (const file of files) {
    if (!parts.length || parts.at(-1).length >= MOST_FILES || held + file.size > MOST_BYTES) { parts.push([]); held = 0; }
    parts.at(-1).push(file);
    held += file.size;
  }
  return parts;
}

function form(files, fields) {
  const data = new FormData();
  for (const [key, value] of Object.entries(fields)) if (value) data.append(key, value);
  // The name includes the folder, so that the catalogue can group by it; it stores the file name alone.
  for (const file of files) data.append("photos", file, [folderOf(file), file.name].filter(Boolean).join("/"));
  return data;
}
