"use strict";
// The address holds the state of the page: #sort=ap&camera=2&id=64&first=wrong&page=3.
// So links and the back button work.
const DEFAULTS = { sort: "ap", camera: "", id: "", first: "", page: "1" };
const PER_PAGE = 12;
const KINDS = [["right", "✓"], ["wrong", "✗"], ["junk", "○"]];
const JUNK = 2;
const data = JSON.parse(document.getElementById("data").textContent);
const thumbs = document.getElementById("thumbs").textContent;
const entries = {};
for (const [name, { type, text }] of Object.entries(data.entries)) {
  entries[name] = new globalThis[type](Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}
const starts = [0];
for (const length of data.lengths) starts.push(starts.at(-1) + length);
const form = document.querySelector(".controls");
const state = { ...DEFAULTS };

const byId = (id) => document.getElementById(id);

/** The user's label of an identity or camera, or its number. */
const identityName = (pid) => data.identities?.[pid] ?? String(pid);
const cameraName = (camid) => data.cameras?.[camid] ?? String(camid);

function described(image) {
  const camera = data.camids[image];
  const identity = `identity ${identityName(data.pids[image])}`;
  return identity + (camera === null ? "" : `, camera ${cameraName(camera)}`);
}

function picture(image, alt = described(image)) {
  const i = data.thumbs[image];
  if (i < 0 || !data.lengths[i]) {
    const attributes = { class: "blank", role: "img", "aria-label": `${alt}, no image` };
    return make("span", attributes, identityName(data.pids[image]));
  }
  const src = "data:image/webp;base64," + thumbs.slice(starts[i], starts[i + 1]);
  return make("img", { src, alt, title: data.names[image], decoding: "async" });
}

/** [{distance, share, ratio}] of an entry's slots. The ratio is 1 at the slot's reference value. */
function explain(entry) {
  const count = data.slots.length;
  const parts = entries.parts.subarray(entry * count, (entry + 1) * count);
  const sum = parts.reduce((a, b) => a + b, 0) || 1;
  return compared([...parts].map((part) => (entries.squared[entry] * part) / sum), data.halfway);
}

/** An answer or a true match: a button that shows its distance by band. */
function card(query, entry, rank) {
  const image = entries.image[entry], camera = data.camids[image];
  const [kind, sign] = KINDS[entries.kind[entry]];
  const shot = make("span", { class: "shot" }, picture(image, `${kind}: ${described(image)}`));
  if (data.slots) shot.append(bands(data.slots, explain(entry), false));
  const distance = ` ${entries.distance[entry].toFixed(3)}`;
  const place = make("b", { class: kind }, rank ? `${sign} ${rank}` : sign);
  const where = data.cameras ? ` ${cameraName(camera)}` : ` c${camera}`;
  const below = make("span", {}, place, distance, camera === null ? "" : where);
  const button = make("button", { type: "button", class: `card ${kind}` }, shot, below);
  if (data.identities) {
    below.append(make("span", { class: "label" }, identityName(data.pids[image])));
  }
  if (data.slots) {
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => toggle(button, query, entry));
  }
  return make("li", {}, button);
}

function toggle(button, query, entry) {
  const row = button.closest(".query");
  const open = button.getAttribute("aria-expanded") === "true";
  row.querySelector(".why")?.remove();
  for (const other of row.querySelectorAll("[aria-expanded=true]")) {
    other.setAttribute("aria-expanded", "false");
  }
  if (open) return;
  button.setAttribute("aria-expanded", "true");
  const shot = make("div", { class: "shot" });
  const parts = explain(entry);
  const image = entries.image[entry];
  shot.append(picture(query), bands(data.slots, parts, true), picture(image));
  const why = make("div", { class: "why", role: "region", "aria-label": "distance by band" });
  const total = entries.squared[entry].toFixed(4);
  const caption = `${described(image)}: squared distance ${total}, the sum of its bands`;
  why.append(shot, bandTable(data.slots, parts, caption));
  row.append(why);
}

/** The numbers ends[i - 1] to ends[i]. */
function range(ends, i) {
  const start = i ? ends[i - 1] : 0;
  return [...Array(ends[i] - start).keys()].map((n) => start + n);
}

function row(query) {
  const first = data.first[query];
  const score = `AP ${percent(data.ap[query], 1)} %, first match at rank ${first}`;
  const found = first === null ? "no match in the gallery" : score;
  const name = make("small", {}, data.names[query]);
  const title = make("h3", {}, `${described(query)} — ${found} `, name);
  let place = 0;
  const answers = range(data.answer_ends, query).map((entry) =>
    card(query, entry, entries.kind[entry] === JUNK ? "" : ++place));
  const listed = data.answer_ends.at(-1);
  const matches = range(data.match_ends, query).map((m) => card(query, listed + m, entries.rank[m]));
  const lists = make("div", {}, make("ol", { class: "strip answers" }, ...answers));
  if (matches.length) {
    lists.append(make("h4", {}, `true matches (${matches.length}) and their ranks`));
    lists.append(make("ol", { class: "strip small matches" }, ...matches));
  }
  const shot = make("div", { class: "shot" }, picture(query, `query: ${described(query)}`));
  return make("article", { class: "query", "data-query": query }, title, shot, lists);
}

/** The chosen queries in the chosen order. */
function chosen() {
  const wanted = (q) =>
    (!state.camera || String(data.camids[q]) === state.camera) &&
    (!state.id || identityName(data.pids[q]) === state.id) &&
    (!state.first || data.first[q] !== null) &&
    (!state.first || (data.first[q] === 1) === (state.first === "right"));
  const queries = [...Array(data.queries).keys()].filter(wanted);
  if (state.sort === "file") return queries;
  const sign = state.sort === "-ap" ? -1 : 1;
  const key = (q) => sign * (data.ap[q] ?? 2 * sign); // queries without a match come last
  return queries.sort((a, b) => key(a) - key(b) || a - b);
}

function render() {
  const queries = chosen(), pages = Math.max(1, Math.ceil(queries.length / PER_PAGE));
  const page = Math.min(Math.max(1, parseInt(state.page) || 1), pages);
  for (const name of ["sort", "camera", "id", "first"]) form.elements[name].value = state[name];
  const start = (page - 1) * PER_PAGE, shown = queries.slice(start, start + PER_PAGE);
  const places = shown.length ? `${start + 1} to ${start + shown.length} of ` : "";
  const sample = data.step > 1 ? ` (every ${data.step}th query)` : "";
  byId("count").textContent = `Queries ${places}${queries.length.toLocaleString("en")}${sample}`;
  byId("rows").replaceChildren(...shown.map(row));
  const turn = (text, to) => {
    const button = make("button", { type: "button" }, text);
    button.disabled = to < 1 || to > pages;
    button.addEventListener("click", () => {
      go({ page: String(to) });
      byId("count").scrollIntoView();
    });
    return button;
  };
  const middle = make("span", {}, `page ${page} of ${pages}`);
  const nav = document.querySelector(".pages");
  nav.replaceChildren(turn("← Previous", page - 1), middle, turn("Next →", page + 1));
}

function go(change) {
  Object.assign(state, { page: "1" }, change);
  history.pushState(null, "", "#" + new URLSearchParams(state));
  render();
}

/** Takes the state from the address. The address of a section ("#summary") changes nothing. */
function follow() {
  if (location.hash && !location.hash.includes("=")) return;
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state)) state[name] = asked.get(name) ?? DEFAULTS[name];
  render();
}

/** Identities by the mean AP of their queries: links from the worst and the best to their rank lists. */
function identities() {
  const found = new Map();
  for (let q = 0; q < data.queries; q++) {
    if (data.ap[q] === null) continue;
    const pid = data.pids[q];
    if (!found.has(pid)) found.set(pid, { pid, query: q, aps: [] });
    found.get(pid).aps.push(data.ap[q]);
  }
  const sorted = [...found.values()];
  for (const one of sorted) one.mean = one.aps.reduce((a, b) => a + b) / one.aps.length;
  sorted.sort((a, b) => a.mean - b.mean);
  const half = Math.min(8, Math.ceil(sorted.length / 2));
  const best = sorted.slice(half).slice(-half).reverse();
  byId("worst").replaceChildren(...sorted.slice(0, half).map(identityLink));
  byId("best").replaceChildren(...best.map(identityLink));
}

function identityLink({ pid, query, mean }) {
  const id = identityName(pid), href = "#" + new URLSearchParams({ id });
  const link = make("a", { href }, picture(query), `${id}: ${percent(mean, 0)} %`);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    go({ ...DEFAULTS, id });
    byId("lists").scrollIntoView();
  });
  return make("li", { class: "shot" }, link);
}

/** The distinct values of the queries, ascending. */
function values(labels) {
  const found = new Set(labels.slice(0, data.queries));
  return [...found].filter((value) => value !== null).sort((a, b) => a - b);
}

for (const value of values(data.camids)) {
  form.elements.camera.append(make("option", { value }, cameraName(value)));
}
for (const pid of values(data.pids)) {
  byId("known").append(make("option", { value: identityName(pid) }));
}
form.addEventListener("change", () => go(Object.fromEntries(new FormData(form))));
form.addEventListener("reset", (event) => {
  event.preventDefault();
  go(DEFAULTS);
});
form.addEventListener("submit", (event) => event.preventDefault());
byId("rows").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const cards = [...(event.target.closest(".strip")?.querySelectorAll(".card") ?? [])];
  if (step && cards.length) cards[cards.indexOf(event.target) + step]?.focus();
});
addEventListener("hashchange", follow);
identities();
render();
follow();
