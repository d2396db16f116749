// Elements, drawings, and numbers as people read them. All that comes from outside is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const at = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export function drawing(viewBox, shapes, label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", viewBox);
  svg.setAttribute("preserveAspectRatio", "none");
  if (label) { svg.setAttribute("role", "img"); svg.setAttribute("aria-label", label); } else svg.setAttribute("aria-hidden", "true");
  for (const [tag, attributes] of shapes) {
    const shape = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    svg.append(shape);
  }
  return svg;
}

// Puts in place what is new and leaves what is the same, so that focus, scrolling and selected text stay where they are.
// Items are [key, build]; one with the same key is the same.
const held = new WeakMap();
export function sync(container, items) {
  const before = held.get(container) || new Map(), now = new Map();
  for (const [key, build] of items) now.set(key, now.get(key) || before.get(key) || build());
  held.set(container, now);
  const wanted = new Set(now.values());
  for (const child of [...container.children]) if (!wanted.has(child)) child.remove();
  let place = container.firstElementChild;
  for (const element of wanted) {
    if (element === place) place = place.nextElementSibling;
    else container.insertBefore(element, place);
  }
}

// Replaces what is in a container; what was scrolled to the side or had the focus is that again.
export function fill(container, ...children) {
  const scrolled = [...container.querySelectorAll(".scroll")].map((each) => [each.getAttribute("aria-label"), each.scrollLeft]);
  const focused = container.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  container.replaceChildren(...children);
  const named = (label) => container.querySelector(`[aria-label="${CSS.escape(label)}"]`);
  for (const [label, left] of scrolled) { const again = left && named(label); if (again) again.scrollLeft = left; }
  if (focused) named(focused)?.focus({ preventScroll: true });
}

// Tables are wider than a phone: they scroll to the side by themselves, with a keyboard too. Cells are text or elements,
// with a note, or several, beneath.
export function table(label, heads, rows, className = "") {
  const cell = (tag, content, more = {}) => {
    const { text, class: name, title, note, ...others } = content !== null && typeof content === "object" && !(content instanceof Node) ? content : { text: content };
    return make(tag, { class: name, title, ...more, ...others }, text === null || text === undefined ? none : text, ...[note].flat().filter(Boolean).map((each) => make("span", { class: "note" }, each)));
  };
  return make("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
    make("table", { class: className },
      make("thead", {}, make("tr", {}, ...heads.map((head) => cell("th", head, { scope: "col" })))),
      make("tbody", {}, ...rows.map(([first, ...others]) => make("tr", {}, cell("th", first, { scope: "row" }), ...others.map((each) => cell("td", each)))))));
}

export const none = "–";
const unknown = (value) => value === null || value === undefined;
export const number = (value) => (unknown(value) ? none : value.toLocaleString("en-US", { maximumFractionDigits: 1 }));
export const percent = (value) => (unknown(value) ? none : `${value.toFixed(1)} %`);
export function milliseconds(value) {
  if (unknown(value)) return none;
  const size = Math.abs(value);
  if (size >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return size >= 10 || size === 0 ? `${Math.round(value).toLocaleString("en-US")} ms` : `${value.toFixed(1)} ms`;
}
export function dollars(value) {
  if (unknown(value)) return none;
  const amount = Math.abs(Number(value)), sign = Number(value) < 0 ? "−" : "";
  if (amount === 0) return "$0";
  if (amount >= 1) return `${sign}$${amount.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  return `${sign}$${amount >= 0.01 ? amount.toFixed(4) : amount.toFixed(Math.min(12, 2 - Math.floor(Math.log10(amount))))}`;
}
// What is known of a sum; of nothing known it is not zero.
export const atLeast = (value, isPart) => (isPart && !Number(value) ? none : `${isPart && !unknown(value) ? "≥ " : ""}${dollars(value)}`);
export const clock = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleTimeString() : "");
export const moment = (iso) => new Date(iso).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
export const utc = (seconds) => (seconds ? `${new Date(seconds * 1000).toISOString()}, as log lines have it` : "");
export function span(seconds) {
  const [size, unit] = seconds % 3600 === 0 ? [3600, "hour"] : seconds % 60 === 0 ? [60, "minute"] : [1, "second"];
  const count = seconds / size;
  return count === 1 ? unit : `${count} ${unit}s`;
}
export const brief = (seconds) => (seconds % 3600 === 0 ? `${seconds / 3600} h` : seconds % 60 === 0 ? `${seconds / 60} min` : `${seconds} s`);
export const many = (count, what) => `${number(count)} ${what}${count === 1 ? "" : "s"}`;

export function bar(share, className) {
  const width = Math.max(0, Math.min(share, 1)) * 1000;
  const svg = drawing("0 0 1000 8", [["rect", { x: 0, y: 0, width, height: 8 }]]);
  svg.setAttribute("class", `bar ${className || ""}`);
  return svg;
}

// A line over time with dots where a point stands alone, and the bound of what is healthy as a dashed line.
export function sparkline(points, bound, label) {
  const known = points.map((value, index) => [index, value]).filter(([, value]) => value !== null);
  if (!known.length) return null;
  const values = known.map(([, value]) => value);
  let low = Math.min(...values), high = Math.max(...values);
  // The bound is drawn where it is near: a threshold of seconds would press a line of milliseconds flat.
  const near = bound !== null && bound >= low - 2 * (high - low || Math.abs(high) || 1) && bound <= high + 2 * (high - low || Math.abs(high) || 1);
  if (near) { low = Math.min(low, bound); high = Math.max(high, bound); }
  const y = (value) => (high === low ? 17 : 31 - (28 * (value - low)) / (high - low)).toFixed(1);
  const shapes = near ? [["line", { class: "bound", x1: 0, x2: points.length - 1, y1: y(bound), y2: y(bound) }]] : [];
  for (let start = 0; start < known.length; ) {
    let end = start;
    while (end + 1 < known.length && known[end + 1][0] === known[end][0] + 1) end += 1;
    const run = known.slice(start, end + 1).map(([index, value]) => `${index},${y(value)}`);
    shapes.push(["polyline", { points: run.length > 1 ? run.join(" ") : `${known[start][0]},${y(known[start][1])} ${known[start][0] + 0.01},${y(known[start][1])}` }]);
    start = end + 1;
  }
  return drawing(`0 0 ${Math.max(points.length - 1, 1)} 34`, shapes, label);
}
