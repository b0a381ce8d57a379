"use strict";
// Strings of the server become text, never HTML. The token is kept until the tab is closed.
const byId = (id) => document.getElementById(id);
const form = byId("search"), answers = byId("answers"), drop = byId("drop");
let image = null, gallery = null, running = null;

function say(text, problem = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("problem", problem);
}

/** The JSON of an answer. Throws an Error with the server's sentence. */
async function ask(address, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(address, { ...options, headers }).catch(() => {
    throw new Error("the server does not answer; try again later");
  });
  byId("token").hidden = response.status !== 401;
  const fault = { detail: `the server answered with status ${response.status}` };
  const content = await response.json().catch(() => fault); // an unexpected error is not JSON
  if (!response.ok) throw new Error(content.detail);
  return content;
}

async function start() {
  try {
    gallery = await ask("v1/gallery");
    byId("about").textContent = `${gallery.entries.toLocaleString("en")} images can be searched`;
    form.top.max = gallery.limits.top;
    if (gallery.threshold !== null && !form.threshold.value) form.threshold.value = gallery.threshold;
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function choose(file) {
  if (!file) return;
  image = file;
  answers.replaceChildren(); // they belong to the image before
  byId("reading").hidden = true;
  if (byId("query").src) URL.revokeObjectURL(byId("query").src);
  byId("query").src = URL.createObjectURL(file);
  byId("query").alt = `the image that is searched, ${file.name}`;
  byId("query").hidden = false;
  search();
}

async function search() {
  if (!image) return say("Choose an image first.", true);
  running?.abort();
  const mine = running = new AbortController();
  const address = new URLSearchParams({ explain: "true", top: form.top.value });
  for (const name of ["pid", "camid"]) {
    if (form[name].value.trim()) address.append(name, form[name].value.trim());
  }
  const body = new FormData();
  body.append("image", image);
  say("Searching …");
  try {
    if (!gallery) await start();
    show((await ask(`v1/search?${address}`, { method: "POST", body, signal: mine.signal })).answers);
  } catch (error) {
    if (mine === running) say(error.message, true);
  }
}

function show(found) {
  const limit = form.threshold.value === "" ? Infinity : Number(form.threshold.value);
  const near = found.filter(({ distance }) => distance <= limit).length;
  const reference = found[0]?.parts?.map((_, s) =>
    Math.max(found.reduce((sum, { parts }) => sum + parts[s], 0) / found.length, Number.MIN_VALUE));
  const items = found.map((answer, i) => card(answer, i + 1, reference, answer.distance <= limit));
  if (limit < Infinity) {
    const text = `threshold ${limit}: ${near} answers are nearer, ${found.length - near} farther`;
    items.splice(near, 0, make("li", { class: "limit" }, text));
  }
  answers.replaceChildren(...items);
  byId("reading").hidden = !reference;
  say(`${found.length} answers${limit < Infinity ? `, ${near} within the threshold` : ""}`);
}

function described({ pid, camid }) {
  return (pid === null ? "unknown identity" : `identity ${pid}`) + (camid === null ? "" : `, camera ${camid}`);
}

function picture(answer) {
  const attributes = { alt: described(answer), title: answer.source };
  if (answer.thumbnail) return make("img", { src: answer.thumbnail, ...attributes });
  return make("span", { class: "blank", role: "img", "aria-label": `${attributes.alt}, no image` }, "no image");
}

function card(answer, rank, reference, near) {
  const shot = make("span", { class: "shot" }, picture(answer));
  const parts = reference && compared(answer.parts, reference);
  if (parts) shot.append(bands(gallery.slots, parts, false));
  const sign = near ? "" : " beyond the threshold";
  const text = make("span", {}, make("b", {}, `${rank}`), ` ${answer.distance.toFixed(3)}${sign}`);
  const file = answer.source.split("/").slice(-2).join("/");
  const label = make("span", { class: "label" }, `${described(answer)}, ${file}`);
  const button = make("button", { type: "button", class: near ? "card" : "card beyond" }, shot, text, label);
  if (parts) {
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => toggle(button, answer, parts));
  }
  return make("li", {}, button);
}

/** Opens the numbers below an answer, or closes them. */
function toggle(button, answer, parts) {
  const open = button.getAttribute("aria-expanded") === "true";
  for (const other of answers.querySelectorAll("[aria-expanded=true]")) other.setAttribute("aria-expanded", "false");
  answers.querySelector(".why")?.remove();
  if (open) return;
  button.setAttribute("aria-expanded", "true");
  const shot = make("div", { class: "shot" });
  const query = make("img", { src: byId("query").src, alt: byId("query").alt });
  shot.append(query, bands(gallery.slots, parts, true), picture(answer));
  const caption = `${described(answer)}, ${answer.name}: squared distance ${answer.distance.toFixed(4)}, the sum of its bands`;
  const why = make("li", { class: "why" }, shot, bandTable(gallery.slots, parts, caption));
  button.closest("li").after(why);
}

byId("query").addEventListener("error", () => (byId("query").hidden = true)); // not an image
for (const id of ["file", "camera"]) byId(id).addEventListener("change", (event) => choose(event.target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", event.target.elements.token.value);
  start();
});
start();
