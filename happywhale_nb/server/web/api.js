// Requests to the server: JSON in and out, an error message for every failure, retries while the model loads.

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.detail && typeof body.detail === "string" ? body.detail : unsaid(status));
    this.status = status;
    this.body = body ?? {};
  }
}

function unsaid(status) {
  if (status === 0) return "The server cannot be reached. Check that it is running, and check your connection.";
  if (status === 413) return "The request is too large for the server.";
  if (status === 429) return "Too many requests. Wait a moment and try again.";
  return `The server returned status ${status}.`;
}

const pause = (ms, signal) => new Promise((done, stop) => {
  const timer = setTimeout(done, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); stop(signal.reason); }, { once: true });
});

/** Sends a request to `/api` + path. body: an object sent as JSON. Returns the JSON, or null for 204. Raises `ApiError`. */
export async function api(path, { method = "GET", body, signal } = {}) {
  return patient(async () => {
    const response = await ask(path, { method, body, signal });
    return response.status === 204 ? null : response.json();
  }, signal);
}

/** Like `api`, for an image or a file: returns a Blob and the file name from the server. */
export async function download(path, { signal } = {}) {
  return patient(async () => {
    const response = await ask(path, { signal });
    const named = /filename\*?=(?:UTF-8'')?"?([^";]+)"?/i.exec(response.headers.get("Content-Disposition") ?? "");
    return { blob: await response.blob(), name: named ? decodeURIComponent(named[1]) : "" };
  }, signal);
}

async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(`/api${path}`, { method, headers, signal, credentials: "same-origin",
      body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0);
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const error = new ApiError(response.status, said);
  error.after = Number(response.headers.get("Retry-After")) || 0;
  throw error;
}

/** Runs an action; retries it when the model is loaded (503), or after the wait in the response (429). */
export async function patient(action, signal) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await action();
    } catch (error) {
      if (error.status === 401) dispatchEvent(new CustomEvent("catalogue:signin"));
      if (error.status === 503 && tries < 20) await untilReady(error, signal);
      else if (error.status === 429 && tries < 5) await pause(1000 * Math.min(error.after || 2 ** tries, 30), signal);
      else throw error;
    }
  }
}

/** Whether the same request may succeed later. */
export const passing = (error) => [0, 429, 502, 503, 504].includes(error?.status);

async function untilReady(error, signal) {
  const announce = (text) => dispatchEvent(new CustomEvent("catalogue:waiting", { detail: text }));
  announce(`${error.message}. This page retries automatically.`);
  try {
    await pause(1500, signal);
    for (;;) {
      const health = await ask("/health", { signal }).then((response) => response.json());
      if (health.status === "ready") return;
      if (health.status === "failed") throw new ApiError(500, { detail: health.detail || error.message });
      await pause(2000, signal);
    }
  } finally {
    announce("");
  }
}

/** The query string of all non-empty parameters, with the question mark: `?a=1&b=2`. */
export function query(params) {
  const kept = Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return kept.length ? `?${new URLSearchParams(kept)}` : "";
}

/** Sends a form with files; `progress(sent, total)` in bytes. Raises `ApiError`. */
export function upload(path, form, { progress = () => {}, signal } = {}) {
  return patient(() => new Promise((done, stop) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api${path}`);
    request.responseType = "json";
    request.upload.onprogress = (event) => progress(event.loaded, event.total);
    request.onerror = () => stop(new ApiError(0));
    request.onabort = () => stop(signal?.reason ?? new ApiError(0));
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) return done(request.response);
      const error = new ApiError(request.status, request.response);
      error.after = Number(request.getResponseHeader("Retry-After")) || 0;
      return stop(error);
    };
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  }), signal);
}
