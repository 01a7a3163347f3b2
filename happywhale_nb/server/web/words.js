// Formats numbers, dates, states and decisions as text.

export const STATES = { undecided: "Undecided", unsure: "Unsure", confirmed: "Confirmed", new: "New", withdrawn: "Withdrawn" };
export const SIDES = { left: "Left", right: "Right", both: "Both sides" };
const ROLES = { read: "read only", review: "reviewer", admin: "admin" };

export const role = (name) => ROLES[name] ?? name;
export const state = (name) => STATES[name] ?? name;
export const side = (name) => SIDES[name] ?? name;

/** The name of a species with blanks: `killer whale` for `killer_whale`. */
export const species = (name) => (name || "").replaceAll("_", " ");

export function count(number, one, many = `${one}s`) {
  return `${Number(number).toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** A probability in per cent, never rounded to 0 or 100. */
export function percent(value) {
  if (value === null || value === undefined) return "–";
  const percent = 100 * value;
  if (percent > 0 && percent < 1) return "<1 %";
  if (percent > 99 && percent < 100) return ">99 %";
  return `${Math.round(percent)} %`;
}

/** `2019-05-02` as `2 May 2019`; other text is unchanged. */
export function day(text) {
  const match = /^(\d{4})-(\d{2})-(\d{2})/.exec(text || "");
  if (!match) return text || "";
  const date = new Date(Date.UTC(+match[1], +match[2] - 1, +match[3]));
  return date.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
}

/** An ISO time, UTC, in the user's local time. */
export function moment(text) {
  const date = new Date(text);
  if (!text || Number.isNaN(date.getTime())) return text || "";
  return date.toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit",
    minute: "2-digit" });
}

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) { number /= 1000; unit += 1; }
  return `${number >= 10 || unit === 0 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

/** The measured coverage of candidate sets, or why there is no set; `shown` candidates of the set are on the page. */
export function promise(answer, shown) {
  const said = answer.promise || "no candidate set: this answer was stored before coverage was measured";
  const more = answer.promised && answer.set_size > shown ? ` This set has ${answer.set_size} candidates; ${shown} are shown.` : "";
  return `${said[0].toUpperCase()}${said.slice(1)}.${more}`;
}

/** The known date, place, species and side of an encounter. */
export function facts(encounter) {
  return [day(encounter.date), encounter.place, species(encounter.species), side(encounter.side)].filter(Boolean);
}

/** A decision as a sentence in parts: strings, and `[kind, {id, name}]` for links. */
export function sentence(decision) {
  const { kind, encounter, individual, other } = decision;
  const e = encounter ? ["encounter", encounter] : "an encounter";
  const i = individual ? ["individual", individual] : "an individual";
  const o = other ? ["individual", other] : "another";
  switch (kind) {
    case "confirm": return [e, " is ", i];
    case "reject": return [e, " is not ", i];
    case "new": return [e, " is a new individual, ", i];
    case "unsure": return [e, " set aside as unsure"];
    case "merge": return [o, " merged into ", i];
    case "split": return [i, " split off ", o];
    case "rename": return [i, " renamed"];
    case "upload": return [e, " added"];
    case "edit": return [e, " edited"];
    case "undo": return ["Undone: decision ", String(decision.undoes ?? ""), ...(encounter ? [" of ", e] : individual ? [" of ", i] : [])];
    default: return [kind, " ", e];
  }
}

/** A decision as one string. */
export const told = (decision) => decision.text || sentence(decision).map((part) => (Array.isArray(part) ? part[1].name : part)).join("");
