"use strict";
// Shared by the report and the page of the server: the distance of two images, drawn band by band.
const percent = (value, digits) => (100 * value).toFixed(digits);

/** An element with attributes and children. Strings become text, never HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** [{distance, share, ratio}] of the slots. The ratio is 1 at the slot's reference value. */
function compared(distances, reference) {
  const sum = distances.reduce((a, b) => a + b, 0) || 1;
  return distances.map((distance, s) => ({ distance, share: distance / sum, ratio: distance / reference[s] }));
}

/** Blue below 1, light at 1, vermilion above. The full colours are at 1/3 and 5/3. */
function colour(ratio) {
  const light = [240, 240, 236], full = ratio < 1 ? [0, 114, 178] : [213, 94, 0];
  const t = Math.min(1.5 * Math.abs(ratio - 1), 1);
  return `rgb(${full.map((v, i) => Math.round(light[i] * (1 - t) + v * t)).join()})`;
}

/** The slots as bands at their places in the image. parts: of `compared`. */
function bands(slots, parts, numbers) {
  const box = make("span", { class: "bands", "aria-hidden": "true" });
  parts.forEach(({ ratio, share }, s) => {
    const { top, bottom, column } = slots[s];
    if (column === box.children.length) box.append(make("span"));
    const text = numbers ? [make("span", {}, `${percent(share, 0)}%`)] : [];
    const band = make("i", { class: ratio > 1 ? "far" : "near" }, ...text);
    const height = `${100 * (bottom - top)}%`; // a policy may forbid style attributes
    Object.assign(band.style, { top: `${100 * top}%`, height, backgroundColor: colour(ratio) });
    box.lastChild.append(band);
  });
  return box;
}

function bandTable(slots, parts, caption) {
  const titles = ["band", "distance", "share", "/ reference"];
  const head = titles.map((title) => make("th", { scope: "col" }, title));
  const body = parts.map(({ distance, share, ratio }, s) => {
    const relative = `${ratio > 1 ? "▲" : "▽"} ${ratio.toFixed(2)}`;
    const cells = [distance.toFixed(4), `${percent(share, 1)} %`, relative];
    const name = make("th", { scope: "row" }, slots[s].name);
    return make("tr", {}, name, ...cells.map((cell) => make("td", {}, cell)));
  });
  const rows = [make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)];
  return make("table", {}, make("caption", {}, caption), ...rows);
}
