// Who is at the page and what they may do.

import { api } from "./api.js";

const RANK = { read: 0, review: 1, admin: 2 };
export const session = { user: "", role: "", tokens: false, catalogue: {} };
let facets = null;

export async function loadSession() {
  Object.assign(session, await api("/session"));
  dispatchEvent(new CustomEvent("catalogue:session"));
  return session;
}

export const may = (role) => (RANK[session.role] ?? -1) >= RANK[role];

/** Disables a control for those who may not use it, and says why. */
export function guard(control, role = "review") {
  if (may(role)) return control;
  control.disabled = true;
  control.title = role === "admin" ? "Only an admin may do this." : "Your token may look, not decide: ask for one with the role review.";
  return control;
}

/** What there is to filter by; asked once, and again after something changed. */
export async function loadFacets(signal) {
  facets ??= await api("/facets", { signal });
  return facets;
}

/** To be called after a decision, an upload or an edit: counts and facets are out of date. */
export function changed() {
  facets = null;
  loadSession().catch(() => {});  // the counts in the header can wait for the next answer
}
