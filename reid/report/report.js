"use strict";
// The page's state is its address: #sort=ap&camera=2&id=64&first=wrong&page=3. Links and the back button work.
const PER_PAGE = 12;
const SIGNS = [["right", "✓"], ["wrong", "✗"], ["junk", "○"]];
const data = JSON.parse(document.getElementById("data").textContent);
const thumbs = document.getElementById("thumbs").textContent;
const entries = {};
for (const [name, { type, text }] of Object.entries(data.entries)) {
  entries[name] = new globalThis[type](Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}
const starts = [0];
for (const length of data.lengths) starts.push(starts.at(-1) + length);
const form = document.querySelector(".controls");
const columns = data.slots ? data.slots.at(-1).column + 1 : 0;
const listed = data.answer_ends.at(-1) ?? 0;

/** An element with attributes and children; text never becomes HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function person(image) {
  const camera = data.camids[image];
  return `person ${data.pids[image]}` + (camera === null ? "" : `, camera ${camera}`);
}

function picture(image, said = person(image)) {
  const i = data.thumbs[image];
  if (i < 0 || !data.lengths[i]) {
    return make("span", { class: "blank", role: "img", "aria-label": `${said}, no image` }, String(data.pids[image]));
  }
  const src = "data:image/webp;base64," + thumbs.slice(starts[i], starts[i + 1]);
  return make("img", { src, alt: said, title: data.names[image], decoding: "async" });
}

/** [{distance, share, ratio}] of an entry's slots; ratio 1 is halfway between right and wrong answers. */
function explain(entry) {
  const parts = entries.parts.subarray(entry * data.slots.length, (entry + 1) * data.slots.length);
  const sum = parts.reduce((a, b) => a + b, 0) || 1;
  return [...parts].map((part, s) => {
    const distance = (entries.squared[entry] * part) / sum;
    return { distance, share: part / sum, ratio: distance / data.halfway[s] };
  });
}

/** Blue below 1, light at 1, vermilion above; full from a third and from five thirds on. */
function colour(ratio) {
  const [end, t] = [ratio < 1 ? [0, 114, 178] : [213, 94, 0], Math.min(1.5 * Math.abs(ratio - 1), 1)];
  return `rgb(${end.map((v, i) => Math.round([240, 240, 236][i] * (1 - t) + v * t)).join()})`;
}

function bands(entry, numbers) {
  const box = make("span", { class: "bands", "aria-hidden": "true" });
  for (let c = 0; c < columns; c++) box.append(make("span"));
  explain(entry).forEach(({ ratio, share }, s) => {
    const { top, bottom, column } = data.slots[s];
    const style = `top:${100 * top}%;height:${100 * (bottom - top)}%;background-color:${colour(ratio)}`;
    const text = numbers ? [make("span", {}, `${(100 * share).toFixed(0)}%`)] : [];
    box.children[column].append(make("i", { style, class: ratio > 1 ? "far" : "near" }, ...text));
  });
  return box;
}

/** A listed answer, or a true match: a button that opens what explains it. */
function card(query, entry, place) {
  const image = entries.image[entry], [kind, sign] = SIGNS[entries.kind[entry]];
  const distance = entries.distance[entry].toFixed(3), camera = data.camids[image];
  const shot = make("span", { class: "shot" }, picture(image, `${kind}: ${person(image)}`));
  if (data.slots) shot.append(bands(entry, false));
  const rank = make("b", { class: kind }, place ? `${sign} ${place}` : sign);
  const below = make("span", {}, rank, ` ${distance}`, camera === null ? "" : ` c${camera}`);
  const button = make("button", { type: "button", class: `card ${kind}` }, shot, below);
  if (data.slots) {
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => toggle(button, query, entry));
  }
  return make("li", {}, button);
}

function toggle(button, query, entry) {
  const row = button.closest(".query"), open = button.getAttribute("aria-expanded") === "true";
  row.querySelector(".why")?.remove();
  row.querySelectorAll("[aria-expanded=true]").forEach((b) => b.setAttribute("aria-expanded", "false"));
  if (open) return;
  button.setAttribute("aria-expanded", "true");
  const image = entries.image[entry];
  const body = make("tbody");
  explain(entry).forEach(({ distance, share, ratio }, s) => {
    const cells = [distance.toFixed(4), `${(100 * share).toFixed(1)} %`, `${ratio > 1 ? "▲" : "▽"} ${ratio.toFixed(2)}`];
    body.append(make("tr", {}, make("th", { scope: "row" }, data.slots[s].name), ...cells.map((c) => make("td", {}, c))));
  });
  const head = ["band", "distance", "share", "of halfway"].map((t) => make("th", { scope: "col" }, t));
  const total = `${person(image)}: squared distance ${entries.squared[entry].toFixed(4)}, the sum of its bands`;
  const table = make("table", {}, make("caption", {}, total), make("thead", {}, make("tr", {}, ...head)), body);
  const shot = make("div", { class: "shot" }, picture(query), bands(entry, true), picture(image));
  row.append(make("div", { class: "why", role: "region", "aria-label": "why this answer" }, shot, table));
}

function row(query) {
  const first = data.first[query], ap = data.ap[query];
  const found = first === null ? "no match in the gallery" : `AP ${(100 * ap).toFixed(1)} %, first match at rank ${first}`;
  const title = make("h3", {}, `${person(query)} — ${found} `, make("small", {}, data.names[query]));
  const answers = make("ol", { class: "strip answers" }), matches = make("ol", { class: "strip small matches" });
  let place = 0;
  for (let e = query ? data.answer_ends[query - 1] : 0; e < data.answer_ends[query]; e++) {
    answers.append(card(query, e, entries.kind[e] === 2 ? "" : ++place));
  }
  for (let m = query ? data.match_ends[query - 1] : 0; m < data.match_ends[query]; m++) {
    matches.append(card(query, listed + m, entries.rank[m]));
  }
  const count = matches.children.length;
  const heading = make("h4", {}, `true matches (${count}) and the rank each got`);
  const lists = make("div", {}, answers, ...(count ? [heading, matches] : []));
  const asked = make("div", { class: "shot" }, picture(query, `query: ${person(query)}`));
  return make("article", { class: "query", "data-query": query }, title, asked, lists);
}

const state = { sort: "ap", camera: "", id: "", first: "", page: "1" };

function chosen() {
  const wanted = (q) =>
    (!state.camera || String(data.camids[q]) === state.camera) &&
    (!state.id || String(data.pids[q]) === state.id) &&
    (!state.first || (data.first[q] !== null && (data.first[q] === 1) === (state.first === "right")));
  const queries = [...Array(data.queries).keys()].filter(wanted);
  const sign = state.sort === "-ap" ? -1 : 1;
  const key = (q) => data.ap[q] ?? (sign > 0 ? 2 : -2); // without a match: last
  return state.sort === "file" ? queries : queries.sort((a, b) => sign * (key(a) - key(b)) || a - b);
}

function render() {
  const queries = chosen(), pages = Math.max(1, Math.ceil(queries.length / PER_PAGE));
  const page = Math.min(Math.max(1, parseInt(state.page) || 1), pages);
  for (const name of ["sort", "camera", "id", "first"]) form.elements[name].value = state[name];
  const start = (page - 1) * PER_PAGE, shown = queries.slice(start, start + PER_PAGE);
  const range = shown.length ? `${start + 1} to ${start + shown.length} of ` : "";
  const sample = data.step > 1 ? ` (every ${data.step}th query)` : "";
  document.getElementById("count").textContent = `Queries ${range}${queries.length.toLocaleString("en")}${sample}`;
  document.getElementById("rows").replaceChildren(...shown.map(row));
  const turn = (text, to) => {
    const button = make("button", { type: "button" }, text);
    button.disabled = to < 1 || to > pages;
    button.addEventListener("click", () => {
      go({ page: String(to) });
      document.getElementById("count").scrollIntoView();
    });
    return button;
  };
  const turns = [turn("← Previous", page - 1), make("span", {}, `page ${page} of ${pages}`), turn("Next →", page + 1)];
  document.querySelector(".pages").replaceChildren(...turns);
}

function go(change) {
  Object.assign(state, { page: "1" }, change);
  history.pushState(null, "", "#" + new URLSearchParams(state));
  render();
}

/** Takes over the address; an address of a section ("#summary") leaves the lists alone. */
function follow() {
  if (location.hash && !location.hash.includes("=")) return;
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state)) state[name] = asked.get(name) ?? { sort: "ap", page: "1" }[name] ?? "";
  render();
}

/** People by the mean AP of their queries: the worst and the best, each a link to their rank lists. */
function people() {
  const sums = new Map();
  for (let q = 0; q < data.queries; q++) {
    if (data.ap[q] === null) continue;
    const [total, count, one] = sums.get(data.pids[q]) ?? [0, 0, q];
    sums.set(data.pids[q], [total + data.ap[q], count + 1, one]);
  }
  const sorted = [...sums].map(([pid, [total, count, one]]) => [pid, total / count, one]).sort((a, b) => a[1] - b[1]);
  const half = Math.min(8, Math.ceil(sorted.length / 2));
  for (const [id, some] of [["worst", sorted.slice(0, half)], ["best", sorted.slice(half).slice(-half).reverse()]]) {
    const links = some.map(([pid, mean, one]) => {
      const link = make("a", { href: `#id=${pid}` }, picture(one), `${pid}: ${(100 * mean).toFixed(0)} %`);
      link.addEventListener("click", (event) => {
        event.preventDefault();
        go({ sort: "ap", camera: "", first: "", id: String(pid) });
        document.getElementById("lists").scrollIntoView();
      });
      return make("li", { class: "shot" }, link);
    });
    document.getElementById(id)?.replaceChildren(...links);
  }
}

const own = (values) => [...new Set(values.slice(0, data.queries))].filter((v) => v !== null).sort((a, b) => a - b);
for (const camera of own(data.camids)) form.elements.camera.append(make("option", { value: camera }, String(camera)));
for (const pid of own(data.pids)) document.getElementById("people").append(make("option", { value: pid }));
form.addEventListener("change", () => go(Object.fromEntries(new FormData(form))));
form.addEventListener("reset", (event) => {
  event.preventDefault();
  go({ sort: "ap", camera: "", id: "", first: "" });
});
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("rows").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const cards = [...(event.target.closest(".strip")?.querySelectorAll(".card") ?? [])];
  if (step && cards.length) cards[cards.indexOf(event.target) + step]?.focus();
});
addEventListener("hashchange", follow);
people();
render();
follow();
