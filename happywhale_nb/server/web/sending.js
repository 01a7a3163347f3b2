// Sending encounters one after the other, with progress, and with what failed kept for another try.

import { upload } from "./api.js";
import { button, el, fill } from "./dom.js";
import { changed } from "./session.js";
import { bytes, count } from "./words.js";

/** The part of the page that sends. `done(files)` is called when an encounter arrived, `busy()` when sending starts
 *  or ends. What failed stays listed by file, with the server's reason. */
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

  async function send(groups, fields) {
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
        show(0, index);
        try {
          const got = await upload("/encounters", form(group, fields), { progress: (now) => show(Math.min(now, size(group)), index) });
          sent.push(got);
          arrived.push(got);
          done(group.files);
        } catch (error) {
          failed.push({ group, fields, reason: error.message });
          showFailures();
        }
        before += size(group);
      }
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

  /** The files that the server's reason names, else all of the encounter. */
  const named = ({ group, reason }) => { const files = group.files.filter((file) => reason.includes(file.name)); return files.length ? files : group.files; };

  function showFailures() {
    const again = (list) => { failed = failed.filter((one) => !list.includes(one)); showFailures(); return Promise.all([list.reduce((wait, one) => wait.then(() => send([one.group], one.fields)), Promise.resolve())]); };
    fill(failures, failed.length > 0 && el("section", { class: "notice" },
      el("h2", { text: `${count(failed.length, "encounter")} did not arrive` }),
      el("ul", {}, failed.map((one) => {
        const bad = named(one);
        const rest = one.group.files.filter((file) => !bad.includes(file));
        return el("li", { data: { failed: bad.map((file) => file.name).join("|") } }, el("b", { class: "file", text: bad.map((file) => file.name).join(", ") }), el("p", { text: one.reason }),
          el("div", { class: "buttons" }, button("Retry", () => again([one])),
            rest.length > 0 && button(`Send the other ${rest.length}`, () => { one.group.files = rest; done(bad); again([one]); }),
            button("Give up", () => { failed = failed.filter((other) => other !== one); done(bad); showFailures(); }, { class: "plain" })));
      })),
      failed.length > 1 && button("Retry all", () => again([...failed]), { id: "retry-all", class: "primary" })));
    const first = failures.querySelector("li button");
    if (first) first.id = "retry";
  }

  function showSent() {
    fill(links, sent.length > 0 && el("section", { class: "notice good" }, el("p", { text: `${count(sent.length, "encounter")} added` }),
      el("ul", { class: "inline" }, sent.map((one) => el("li", {}, el("a", { href: `#/encounter/${one.id}`, data: { encounter: one.id }, text: `${one.name} (${one.photos.length})` })))),
      el("p", {}, el("a", { href: "#/queue", text: "To the queue" }))));
  }

  return { node, send, running: () => running };
}

function form(group, fields) {
  const data = new FormData();
  for (const [key, value] of Object.entries({ ...fields, name: group.name })) if (value) data.append(key, value);
  for (const file of group.files) data.append("photos", file, file.name);
  return data;
}
