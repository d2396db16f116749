// The latest runs as waterfalls, and what was decided and what failed.

import { at, clock, dollars, drawing, make, milliseconds, number, sync, utc } from "./page.shapes.js";

const voted = new Map();
const opened = new Set();
const HEAD_CLASSES = [null, null, "num tokens", "num", "num", "track"];
let shown = null;
let send = null;

export function onVote(callback) {
  send = callback;
  at("failed-only").addEventListener("change", () => shown && drawRuns(shown));
}

async function vote(run, correct, buttons) {
  if (!(await send(run.request_id, correct))) return;
  voted.set(run.request_id, correct);
  for (const button of buttons.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.correct === String(correct)));
}

function thumb(run, correct) {
  const name = correct ? "correct" : "incorrect";
  return make("button", {
    type: "button", "aria-pressed": String(voted.get(run.request_id) === correct),
    "aria-label": `Mark run ${run.request_id} as ${name}`, "data-correct": String(correct),
    onclick: (event) => vote(run, correct, event.currentTarget.parentElement),
  }, correct ? "👍 correct" : "👎 incorrect");
}

// Whether the error of a span came up from a span beneath it, which tells it.
function isPassedOn(spans, place) {
  for (const beneath of spans.slice(place + 1)) {
    if (beneath.depth <= spans[place].depth) return false;
    if (beneath.error === spans[place].error) return true;
  }
  return false;
}

function waterfall(run) {
  const rows = run.spans.flatMap((span, place) => {
    const left = run.ms ? (1000 * (span.started - run.started) * 1000) / run.ms : 0;
    const width = run.ms ? Math.max((1000 * span.ms) / run.ms, 4) : 1000;
    const tokens = span.input_tokens === null ? "" : `${number(span.input_tokens)} → ${number(span.output_tokens)}`;
    const name = make("td", {});
    name.style.paddingLeft = `${6 + Math.min(span.depth, 8) * 14}px`;
    name.append(span.name);
    const more = make("td", { colspan: "6" });
    more.style.paddingLeft = name.style.paddingLeft;
    if (span.error && !isPassedOn(run.spans, place)) more.append(make("div", { class: `${span.outcome} mono` }, span.error));
    for (const [what, text] of [["Input", span.input], ["Output", span.output]]) {
      if (text) more.append(make("pre", { role: "region", "aria-label": `${what} of ${span.name}`, tabindex: "0" }, text));
    }
    const box = { x: Math.max(0, Math.min(left, 996)), y: 1, width, height: 10, rx: 2 };
    const figures = make("tr", { class: span.kind }, name, make("td", { class: span.outcome }, span.outcome),
      make("td", { class: "num tokens" }, tokens), make("td", { class: "num" }, dollars(span.cost_usd)),
      make("td", { class: "num" }, milliseconds(span.ms)), make("td", { class: "track" }, drawing("0 0 1000 12", [["rect", box]])));
    return more.childNodes.length ? [figures, make("tr", {}, more)] : [figures];
  });
  const heads = ["Span", "Outcome", "Tokens", "Cost", "Time", "When"];
  return make("div", { class: "scroll", role: "region", "aria-label": `Spans of ${run.request_id}`, tabindex: "0" }, make("table", { class: "waterfall" },
    make("thead", {}, make("tr", {}, ...heads.map((text, index) => make("th", { scope: "col", class: HEAD_CLASSES[index] }, text)))),
    make("tbody", {}, ...rows)));
}

// The deepest span with the run's error is where it came from.
function cause(run) {
  if (run.outcome === "success") return null;
  const told = run.spans.filter((span) => span.error).sort((a, b) => b.depth - a.depth)[0];
  return told ? `${told.name}: ${told.error}` : null;
}

function item(run, key) {
  const why = cause(run);
  const details = make("details", { ontoggle: (event) => { event.target.open ? opened.add(key) : opened.delete(key); } },
    make("summary", { "aria-label": `${run.name} ${run.request_id} ${clock(run.started)}: ${run.outcome}${why ? `, ${why}` : ""}` },
      make("span", { class: "name" }, run.name), make("span", { class: `word ${run.outcome}` }, run.outcome),
      make("span", { class: "num" }, milliseconds(run.ms)), make("span", { class: "num cost" }, dollars(run.cost_usd)),
      make("span", { class: "quiet num", title: utc(run.started) }, clock(run.started)), make("span", { class: "id" }, run.request_id),
      why ? make("span", { class: `why ${run.outcome}` }, why) : null),
    waterfall(run),
    make("div", { class: "votes" }, thumb(run, true), thumb(run, false),
      run.trace_id ? make("span", { class: "mono quiet" }, `trace ${run.trace_id}`) : null,
      run.cut ? make("span", { class: "quiet" }, "more spans than are shown") : null));
  details.open = opened.has(key);
  const tone = { success: null, error: "bad" };
  return make("li", { class: run.outcome in tone ? tone[run.outcome] : "bad soft" }, details);
}

export function drawRuns(state) {
  shown = state;
  const onlyFailed = at("failed-only").checked;
  const runs = onlyFailed ? [...state.runs, ...state.older_failures].filter((run) => run.outcome !== "success") : state.runs;
  const empty = onlyFailed ? "None of the latest runs has failed." : "No run has ended yet.";
  const key = (run) => `${run.request_id} ${run.trace_id} ${run.started}`;
  sync(at("runs"), runs.length ? runs.map((run) => [key(run), () => item(run, key(run))]) : [[empty, () => make("li", { class: "quiet" }, empty)]]);
}

// One error is seen by the call, the tool or agent around it and the run: that is one line; and so is the same again.
export function groups(events) {
  const failures = new Map();
  for (const event of events) {
    if (event.event === "feedback.recorded" && event.decision === "correct") continue; // the signal tells those
    const key = event.event === "error" ? `${event.request_id}|${event.reason}` : `${event.id}`;
    failures.set(key, event); // the newest come first, so what stays is where it began
  }
  const alike = new Map();
  for (const event of failures.values()) {
    const key = JSON.stringify([event.event, event.message, event.reason, event.agent]);
    const group = alike.get(key);
    if (group) group.count += 1;
    else alike.set(key, { ...event, count: 1 });
  }
  return [...alike.values()];
}

function line(event) {
  const failed = event.event === "error";
  return make("li", { class: failed ? "bad" : null },
    make("div", {}, make("span", { class: `word ${failed ? "error" : "blocked"}` }, event.event), " ", event.agent ? `${event.agent}: ` : "", event.message,
      event.count > 1 ? make("strong", { class: "count" }, ` × ${event.count}`) : null),
    event.reason ? make("div", {}, event.reason) : null,
    make("div", { class: "quiet mono", title: utc(event.at) }, [`${event.count > 1 ? "last " : ""}${clock(event.at)}`, event.request_id].filter(Boolean).join(" · ")));
}

export function drawEvents(events) {
  const found = groups(events);
  sync(at("events"), found.length ? found.map((event) => [JSON.stringify(event), () => line(event)]) : [["", () => make("li", { class: "quiet" }, "None so far.")]]);
}
