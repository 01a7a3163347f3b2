// The signed-in user and the role.

import { api } from "./api.js";

export const session = { user: "", role: "", permissions: [], tokens: false, catalogue: {} };
let facets = null;

export async function loadSession() {
  Object.assign(session, await api("/session"));
  dispatchEvent(new CustomEvent("catalogue:session"));
  return session;
}

/** Whether the user's role has a permission; the server's table of roles says which. */
export const may = (permission) => session.permissions.includes(permission);

/** Disables a control without the required permission, and explains why. */
export function guard(control, permission = "decide") {
  if (may(permission)) return control;
  control.disabled = true;
  control.title = permission === "decide" ? "Your token is read-only. Ask for a token with the role review." : "Only an admin can do this.";
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
