// The OpenAPI description (/openapi.json) as a web page: endpoints, parameters and responses.

import { el, fill } from "./dom.js";

/** The name of the schema in a `$ref`. */
const target = (ref) => ref.split("/").pop();

/** A short description of a schema, with links to named schemas. */
function kind(schema) {
  if (!schema) return ["nothing"];
  if (schema.$ref) return [el("a", { href: `#${target(schema.$ref)}`, text: target(schema.$ref) })];
  if (schema.anyOf) return schema.anyOf.flatMap((part, i) => (i ? [" or ", ...kind(part)] : kind(part)));
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if (schema.type === "array") return ["list of ", ...kind(schema.items)];
  const bounds = [["minimum", "≥"], ["maximum", "≤"], ["maxLength", "≤ characters:"]]
    .filter(([name]) => name in schema).map(([name, sign]) => `${sign} ${schema[name]}`);
  const form = schema.contentMediaType ? "file" : schema.type ?? "anything";
  return [bounds.length ? `${form} (${bounds.join(", ")})` : form];
}

function row(name, schema, needed, about = "") {
  const detail = "default" in (schema ?? {}) ? `default ${JSON.stringify(schema.default)}` : needed ? "required" : "";
  return el("tr", {}, el("td", {}, el("code", { text: name })), el("td", {}, ...kind(schema)), el("td", { class: "soft", text: detail }),
    el("td", { text: about }));
}

function table(rows) {
  return rows.length ? el("table", {}, el("tbody", {}, rows)) : null;
}

/** A table with the fields of a request body. */
function bodyRows(content, schemas) {
  const [media, { schema }] = Object.entries(content)[0];
  const fields = schema.$ref ? schemas[target(schema.$ref)] : schema;
  const needed = new Set(fields.required ?? []);
  const rows = Object.entries(fields.properties ?? {}).map(([name, each]) => row(name, each, needed.has(name), ""));
  return [el("p", { class: "soft", text: `Body, ${media}:` }), table(rows)];
}

function example(method, path, body) {
  const lines = [`curl -X ${method.toUpperCase()} ${location.origin}${path} -H 'Authorization: Bearer TOKEN'`];
  if (body && "multipart/form-data" in body) lines.push(`  -F ${path === "/match" ? "images" : "photos"}=@photo.jpg`);
  if (body && "application/json" in body) lines.push("  -H 'Content-Type: application/json' -d '{…}'");
  return el("pre", { text: lines.join(" \\\n") });
}

function operation(path, method, about, schemas) {
  const body = about.requestBody?.content;
  const given = (about.parameters ?? []).map((each) => row(each.name, each.schema, each.required, ""));
  const [status, answer] = Object.entries(about.responses).find(([code]) => code < 300) ?? ["", {}];
  const back = Object.entries(answer.content ?? {})[0];
  const returned = back && back[1].schema && Object.keys(back[1].schema).length ? kind(back[1].schema) : [back ? back[0] : "nothing"];
  return el("section", { class: "operation", id: about.operationId },
    el("h2", {}, el("span", { class: "method", text: method.toUpperCase() }), path),
    el("p", { text: about.description ?? about.summary }), table(given), body && bodyRows(body, schemas),
    el("p", {}, `Response ${status}: `, ...returned), example(method, path, body));
}

function schema(name, about) {
  const needed = new Set(about.required ?? []);
  return el("section", { class: "operation", id: name }, el("h2", { text: name }), el("p", { text: about.description ?? "" }),
    table(Object.entries(about.properties ?? {}).map(([field, each]) => row(field, each, needed.has(field), ""))));
}

const main = document.getElementById("main");
const spec = await (await fetch("/openapi.json")).json();
const schemas = spec.components.schemas;
const operations = Object.entries(spec.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, about]) => [path, method, about]));
fill(main, el("h1", { text: spec.info.title }), el("p", { text: spec.info.description }),
  el("p", {}, "An error is a message in ", el("code", { text: '{"detail": "…"}' }), ". For programs: ",
    el("a", { href: "/openapi.json", text: "openapi.json" }), `, version ${spec.info.version}.`),
  el("nav", { "aria-label": "Endpoints" }, operations.map(([path, method, about]) =>
    el("a", { href: `#${about.operationId}`, text: `${method.toUpperCase()} ${path}` }))),
  operations.map(([path, method, about]) => operation(path, method, about, schemas)),
  el("h1", { text: "Schemas" }), Object.entries(schemas).map(([name, about]) => schema(name, about)));
