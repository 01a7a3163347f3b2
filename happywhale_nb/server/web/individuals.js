// The individuals of the catalogue, with a picture each.

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
      total.textContent = got.total ? count(got.total, "individual") : "No individual fits.";
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
  fill(main, el("div", { class: "page-head" }, el("h1", { text: "Individuals" }), total), bar, chips, list, el("div", { class: "more" }, more));
  remember("individuals", values, "/individuals");
  const seen = new IntersectionObserver((entries) => { if (entries[0].isIntersecting && !more.hidden && !more.disabled) load(false); },
    { rootMargin: "400px" });
  seen.observe(more.parentElement);
  signal.addEventListener("abort", () => seen.disconnect());
  await load(true);
}

function item(individual) {
  return el("li", {}, el("a", { class: "cover", href: `#/individual/${individual.id}`, data: { individual: individual.id } },
    cover(individual.cover),
    el("b", { text: individual.name }), el("span", { class: "soft", text: species(individual.species) }),
    el("span", { class: "soft", text: `${count(individual.photos, "photograph")} · ${count(individual.encounters, "encounter")}` }),
    individual.last && el("span", { class: "soft", text: `last met ${day(individual.last)}` })));
}

/** The cover picture: the whole photograph, cut to the tile. */
export function cover(id) {
  return id ? el("img", { class: "whole", src: `/api/photos/${id}/picture?side=320`, alt: "", loading: "lazy", decoding: "async" })
    : el("span", { class: "whole nobody", text: "No photograph" });
}
