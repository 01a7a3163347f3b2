// The signed-in user and the role.

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

/** Disables a control without the required role, and explains why. */
export function guard(control, role = "review") {
  if (may(role)) return control;
  control.disabled = true;
  control.title = role === "admin" ? "Only an admin can do this." : "Your token is read-only. Ask for a token with the role review.";
  return control;
}

/** The values to filter by; cached until something changes. */
export async function loadFacets(signal) {
  facets ??= await api("/facets", { signal });
  return facets;
}

/** Call this after a decision, an upload or an edit: it refreshes counts and facets. */
export function changed() {
  facets = null;
  loadSession().catch(() => {});  // the next request refreshes the counts
}
