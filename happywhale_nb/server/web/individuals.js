// The list of individuals, each with a photograph.

import { api, query } from "./api.js";
import { button, el, fill } from "./dom.js";
import { filterBar, initial, remember } from "./filters.js";
import { fail } from "./messages.js";
import { loadFacets } from "./session.js";
import { count, day, species } from "./words.js";

const KEYS = ["q", "species"];

export async function showIndividuals(main, route, signal) {
  const values = initial("individuals", route, KEYS);
  const facets = await loadFacets(signal);
  const total = el("p", { class: "total", id: "total", role: "status", "aria-live": "polite" });
  const list = el("ol", { class: "individuals", id: "individuals" });
  const more = button("More", () => load(false), { id: "more", hidden: true });
  const empty = el("div", { class: "empty" });
  let cursor = "";
  let run = 0;

  async function load(fresh) {
    const mine = fresh ? ++run : run;
    if (fresh) cursor = "";
    more.disabled = true;
    try {
      const got = await api(`/individuals${query({ ...values, after: cursor, limit: 48 })}`, { signal });
      if (mine !== run) return;
      if (fresh) list.replaceChildren();
      list.append(...got.individuals.map(item));
      cursor = got.next;
      total.textContent = got.total ? count(got.total, "individual") : "";
      fill(empty, !got.total && nothing(values));
      more.hidden = !cursor;
    } catch (error) {
      fail(error);
    } finally {
      more.disabled = false;
    }
  }

  const { bar, chips } = filterBar("individuals", KEYS, values, facets, (now) => {
    Object.assign(values, now);
    remember("individuals", values, "/individuals");
    load(true);
  });
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Individuals" }), total), bar, chips, empty, list, el("div", { class: "more" }, more));
  remember("individuals", values, "/individuals");
  const seen = new IntersectionObserver((entries) => { if (entries[0].isIntersecting && !more.hidden && !more.disabled) load(false); },
    { rootMargin: "400px" });
  seen.observe(more.parentElement);
  signal.addEventListener("abort", () => seen.disconnect());
  await load(true);
}

/** What to do when the list is empty. */
function nothing(values) {
  if (!KEYS.some((key) => values[key])) return [el("p", { text: "No individuals yet: mark an encounter in the queue as new." }), el("a", { class: "button primary", href: "#/queue", text: "Go to the queue" })];
  const clear = () => { for (const key of KEYS) values[key] = ""; remember("individuals", values, "/individuals"); dispatchEvent(new CustomEvent("catalogue:again")); };
  return [el("p", { text: "No individual matches." }), button("Clear the filters", clear, { class: "primary", id: "clear-filters" })];
}

function item(individual) {
  return el("li", {}, el("a", { class: "cover", href: `#/individual/${individual.id}`, data: { individual: individual.id } },
    cover(individual.cover),
    el("b", { text: individual.name }), el("span", { class: "soft", text: species(individual.species) }),
    el("span", { class: "soft", text: `${count(individual.photos, "photograph")} · ${count(individual.encounters, "encounter")}` }),
    individual.last && el("span", { class: "soft", text: `last met ${day(individual.last)}` }),
    individual.known_as?.length > 0 && el("span", { class: "soft", text: `also ${individual.known_as.join(", ")}` })));
}

/** The cover photograph, cropped to the tile. */
export function cover(id) {
  return id ? el("img", { class: "whole", src: `/api/photos/${id}/picture?side=320`, alt: "", loading: "lazy", decoding: "async" })
    : el("span", { class: "whole nobody", text: "No photograph" });
}
