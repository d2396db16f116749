// Draws what /live sends. All that comes from outside is set as text, never as markup.

const root = document.documentElement.dataset.root;
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const voted = new Map();
const opened = new Set();
let token = new URLSearchParams(location.hash.slice(1)).get("token") || sessionStorage.getItem("token") || "";
let watching = null;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function drawing(viewBox, tag, attributes, label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", viewBox);
  svg.setAttribute("preserveAspectRatio", "none");
  if (label) { svg.setAttribute("role", "img"); svg.setAttribute("aria-label", label); } else svg.setAttribute("aria-hidden", "true");
  for (const each of [attributes].flat()) {
    const shape = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(each)) shape.setAttribute(name, value);
    svg.append(shape);
  }
  return svg;
}

const none = "–";
const percent = (value) => (value === null ? none : `${value.toFixed(1)} %`);
const number = (value) => (value === null || value === undefined ? none : value.toLocaleString("en-US", { maximumFractionDigits: 1 }));
function milliseconds(value) {
  if (value === null || value === undefined) return none;
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 10 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
}
function dollars(value) {
  if (value === null || value === undefined) return none;
  const amount = Number(value);
  if (amount === 0) return "$0";
  return amount >= 0.01 ? `$${amount.toFixed(4)}` : `$${amount.toPrecision(3)}`;
}
const clock = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleTimeString() : "");

const SIGNALS = [
  ["success_rate", "Success rate", percent, (bound) => `≥ ${bound} %`],
  ["p95_latency_ms", "p95 latency", milliseconds, (bound) => `≤ ${bound / 1000} s`],
  ["cost_per_successful_task_usd", "Cost per task", dollars, (bound) => `≤ $${bound.toFixed(2)}`],
  ["user_confirmed_correctness_percent", "User correctness", percent, String],
  ["policy_violation_rate_percent", "Policy violations", percent, (bound) => `≤ ${bound} %`],
];

function sparkline(points, label) {
  const known = points.map((value, index) => [index, value]).filter(([, value]) => value !== null);
  if (known.length < 2) return null;
  const values = known.map(([, value]) => value);
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const line = known.map(([index, value]) => `${index},${26 - (22 * (value - low)) / span}`).join(" ");
  return drawing(`0 0 ${Math.max(points.length - 1, 1)} 30`, "polyline", { points: line }, label);
}

function drawSignals(state) {
  const found = state.signals;
  at("service").textContent = state.service;
  at("verdict").textContent = found.verdict;
  at("verdict").className = `badge ${found.verdict}`;
  at("signals").replaceChildren(...SIGNALS.map(([key, name, show, bound]) => {
    const signal = found.signals[key];
    const bounds = signal.healthy === null ? "no threshold" : `healthy ${bound(signal.healthy)}`;
    return make("li", { class: signal.verdict, id: `signal-${key}` },
      make("span", {}, name), make("span", { class: "value" }, show(signal.value)),
      make("span", { class: "word" }, signal.verdict), make("span", { class: "quiet" }, ` · ${bounds}`),
      sparkline(state.series[key] || [], `${name} of the last minutes`));
  }));
  const checked = found.checked_runs === null ? "which runs were checked is not known" : found.checked_runs ? `${found.checked_runs} checked by policies` : "no run checked by policies";
  at("basis").textContent =
    `${number(found.runs)} runs, ${number(found.successes)} successful; ${dollars(found.total_cost_usd)} spent, ` +
    `${dollars(found.wasted_cost_usd)} of it on calls that did not succeed; ${checked}; ` +
    `${number(found.feedback)} verdicts of users (${percent(found.feedback_response_rate_percent)} of runs)${found.source ? `; by ${found.source}` : ""}.` +
    (state.problems.length ? ` ${state.problems.join("; ")}` : "");
}

async function vote(run, correct) {
  const answer = await fetch(`${root}/feedback`, {
    method: "POST", headers: { "Content-Type": "application/json", ...authorization() },
    body: JSON.stringify({ request_id: run.request_id, correct, user: "page" }),
  });
  if (answer.ok) voted.set(run.request_id, correct);
  at("status").textContent = answer.ok ? "thank you" : `the vote was not taken (${answer.status})`;
  drawRuns(last.runs);
}

function thumb(run, correct) {
  const name = correct ? "correct" : "incorrect";
  return make("button", {
    type: "button", "aria-pressed": String(voted.get(run.request_id) === correct),
    "aria-label": `Mark run ${run.request_id} as ${name}`, onclick: () => vote(run, correct),
  }, correct ? "👍 correct" : "👎 incorrect");
}

const HEAD_CLASSES = [null, null, "num tokens", "num", "num", "track"];

function waterfall(run) {
  const rows = run.spans.flatMap((span) => {
    const left = run.ms ? (1000 * (span.started - run.started) * 1000) / run.ms : 0;
    const width = run.ms ? Math.max((1000 * span.ms) / run.ms, 4) : 1000;
    const tokens = span.input_tokens === null ? "" : `${number(span.input_tokens)} → ${number(span.output_tokens)}`;
    const name = make("td", {});
    name.style.paddingLeft = `${6 + span.depth * 16}px`;
    name.append(span.name);
    const more = make("td", { colspan: "6" });
    more.style.paddingLeft = name.style.paddingLeft;
    if (span.error) more.append(make("div", { class: `${span.outcome} mono` }, span.error));
    for (const [what, text] of [["Input", span.input], ["Output", span.output]]) {
      if (text) more.append(make("pre", { role: "region", "aria-label": `${what} of ${span.name}`, tabindex: "0" }, text));
    }
    const bar = { x: Math.max(0, Math.min(left, 996)), y: 1, width, height: 10, rx: 2 };
    const figures = make("tr", { class: span.kind }, name, make("td", { class: span.outcome }, span.outcome),
      make("td", { class: "num tokens" }, tokens), make("td", { class: "num" }, dollars(span.cost_usd)),
      make("td", { class: "num" }, milliseconds(span.ms)), make("td", { class: "track" }, drawing("0 0 1000 12", "rect", bar)));
    return more.childNodes.length ? [figures, make("tr", {}, more)] : [figures];
  });
  const heads = ["Span", "Outcome", "Tokens", "Cost", "Time", "When"];
  return make("div", { class: "scroll" }, make("table", { class: "waterfall" },
    make("thead", {}, make("tr", {}, ...heads.map((text, index) => make("th", { scope: "col", class: HEAD_CLASSES[index] }, text)))),
    make("tbody", {}, ...rows)));
}

function drawRuns(runs) {
  if (!runs.length) return;
  const focus = document.activeElement?.getAttribute("aria-label");
  at("runs").replaceChildren(...runs.map((run) => {
    const key = `${run.request_id} ${run.started}`;
    const details = make("details", { ontoggle: (event) => { event.target.open ? opened.add(key) : opened.delete(key); } },
      make("summary", {}, make("span", { class: "name" }, run.name), make("span", { class: run.outcome }, run.outcome),
        make("span", {}, milliseconds(run.ms)), make("span", {}, dollars(run.cost_usd)),
        make("span", { class: "id" }, run.request_id), make("span", { class: "quiet" }, clock(run.started))),
      waterfall(run),
      make("div", { class: "votes" }, thumb(run, true), thumb(run, false),
        run.trace_id ? make("span", { class: "mono quiet" }, `trace ${run.trace_id}`) : null,
        run.cut ? make("span", { class: "quiet" }, "more spans than are shown") : null));
    details.open = opened.has(key);
    return make("li", {}, details);
  }));
  if (focus) document.querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus();
}

function drawEvents(events) {
  if (!events.length) return;
  at("events").replaceChildren(...events.map((event) => make("li", {},
    make("span", { class: event.event === "error" ? "error" : "blocked" }, event.event), " ", event.message,
    event.reason ? make("div", { class: "quiet" }, event.reason) : null,
    make("div", { class: "quiet mono" }, [clock(event.at), event.agent, event.request_id].filter(Boolean).join(" · ")))));
}

function bars(id, rows, empty) {
  at(id).replaceChildren(...(rows.length ? rows : [make("li", { class: "quiet" }, empty)]));
}

function bar(name, shown, share, state) {
  const width = Math.max(0, Math.min(share, 1)) * 1000;
  return make("li", { class: state }, make("div", { class: "row" }, make("span", {}, name), make("span", { class: "num" }, shown)),
    drawing("0 0 1000 8", "rect", { x: 0, y: 0, width, height: 8 }, `${name}: ${shown}`));
}

function drawCosts(costs) {
  for (const [by, spent] of Object.entries(costs)) {
    const most = Math.max(...Object.values(spent), 1e-12);
    bars(`cost-${by}`, Object.entries(spent).map(([name, usd]) => bar(name, dollars(usd), usd / most)), "Nothing was spent yet.");
  }
}

function drawBudgets(budgets) {
  bars("budgets", budgets.map((one) => bar(
    `${one.name}${one.account ? ` (${one.account})` : ""}, each ${one.window}`, `${dollars(one.spent_usd)} of ${dollars(one.limit_usd)}`,
    one.ratio, one.ratio >= 1 ? "over" : one.ratio >= 0.8 ? "near" : null)), "None is set.");
}

let last = null;
function draw(state) {
  last = state;
  drawSignals(state);
  drawRuns(state.runs);
  drawEvents(state.events);
  drawCosts(state.costs);
  drawBudgets(state.budgets);
}

const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

async function watch() {
  watching?.abort();
  const mine = (watching = new AbortController());
  const asked = at("window").value;
  try {
    const answer = await fetch(`${root}/live${asked ? `?window=${asked}` : ""}`, { headers: authorization(), signal: mine.signal });
    at("login").hidden = answer.status !== 401;
    if (!answer.ok) { at("status").textContent = answer.status === 401 ? "a token is needed" : `the server answered ${answer.status}`; if (answer.status === 401) return; throw new Error(); }
    at("status").textContent = "live";
    sessionStorage.setItem("token", token);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      text += value;
      const messages = text.split("\n\n");
      text = messages.pop();
      for (const message of messages) if (message.startsWith("data: ")) draw(JSON.parse(message.slice(6)));
    }
  } catch (error) {
    if (mine.signal.aborted) return;
  }
  if (mine.signal.aborted) return;
  at("status").textContent = "not connected; trying again …";
  setTimeout(() => { if (!mine.signal.aborted) watch(); }, 2000);
}

at("window").addEventListener("change", watch);
at("login").addEventListener("submit", (event) => { event.preventDefault(); token = at("token").value; watch(); });
if (location.hash.includes("token=")) history.replaceState(null, "", location.pathname);
watch();
