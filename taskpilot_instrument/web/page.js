// Watches /live and draws what it sends: what is wrong first.

import { drawEvents, drawRuns, groups, onVote } from "./page.runs.js";
import { at, atLeast, brief, dollars, make, many, milliseconds, moment, number, percent, span, sparkline } from "./page.shapes.js";
import { drawAgents, drawBudgets, drawExperiments, drawModels, drawWorkflows, nameOf, ofTheirOwn } from "./page.tables.js";

const root = document.documentElement.dataset.root;
let token = new URLSearchParams(location.hash.slice(1)).get("token") || sessionStorage.getItem("token") || "";
let watching = null;

// --- signals, and where they come from -----------------------------------------------------------

// Of each signal: key, name, how it is shown, its bound, and which workflow or agents it comes from most.
const SIGNALS = [
  ["success_rate", "Success rate", percent, (bound) => `≥ ${bound} %`,
    ({ workflows, agents }) => [most(ofTheirOwn(workflows, agents), unsuccessful, ended), most(agents, unsuccessful, ended, 2)].filter(Boolean).join("; ") || null],
  ["p95_latency_ms", "p95 latency", milliseconds, (bound) => `≤ ${bound / 1000} s`,
    ({ agents }) => most(agents, (each) => each.p95_latency_ms, (each) => `p95 ${milliseconds(each.p95_latency_ms)}`)],
  ["cost_per_successful_task_usd", "Cost per task", dollars, (bound) => `≤ $${bound.toFixed(2)}`,
    ({ agents }) => most(agents, (each) => each.cost_usd, (each) => `${dollars(each.cost_usd)} spent`)],
  ["user_confirmed_correctness_percent", "User correctness", percent, String,
    ({ agents }) => most(agents, (each) => (each.feedback ? (each.feedback * (100 - each.correctness_percent)) / 100 : 0), (each) => `${percent(each.correctness_percent)} correct of ${many(each.feedback, "vote")}`)],
  ["policy_violation_rate_percent", "Policy violations", percent, (bound) => `≤ ${bound} %`,
    ({ agents }) => most(agents, (each) => each.violations, (each) => many(each.violations, "violation"))],
];

// The first agent or workflow, and of up to `count` in all those that have half as much of it or more.
function most(rows, value, show, count = 1) {
  const named = rows.filter((each) => value(each) > 0).sort((a, b) => value(b) - value(a));
  const told = named.slice(0, count).filter((each) => 2 * value(each) >= value(named[0]));
  return told.map((each) => `${each.workflow ?? nameOf(each)}: ${show(each)}`).join("; ") || null;
}

const unsuccessful = (each) => each.failed + each.blocked_runs;
const ended = (each) => `${endings(each.failed, each.blocked_runs)} of ${many(each.runs, "run")}`;
const endings = (failed, blocked) => [failed ? `${number(failed)} failed` : null, blocked ? `${number(blocked)} blocked` : null].filter(Boolean).join(", ");

function drawSignals(state) {
  const found = state.signals, { seconds, width_s, points } = state.series;
  at("service").textContent = state.service;
  at("verdict").textContent = found.verdict;
  at("verdict").className = `badge ${found.verdict}`;
  document.title = `${found.verdict === "critical" || found.verdict === "warning" ? `${found.verdict}: ` : ""}${state.service}`;
  const period = `last ${span(seconds)}`;
  at("signals").replaceChildren(...SIGNALS.map(([key, name, show, bound, from]) => {
    const signal = found.signals[key], known = points[key].filter((value) => value !== null);
    const bounds = signal.healthy === null ? "no threshold" : `healthy ${bound(signal.healthy)}`;
    const range = known.length ? `${show(Math.min(...known))} – ${show(Math.max(...known))}` : "nothing";
    const where = from(state), here = state.source ? "this process: " : "";
    return make("li", { class: signal.verdict, id: `signal-${key}` },
      make("span", { class: "title" }, name), make("span", { class: "value" }, show(signal.value)),
      make("span", {}, signal.verdict === "unknown" ? null : make("span", { class: "word" }, `${signal.verdict} · `), make("span", { class: "quiet" }, bounds)),
      make("span", { class: "where" }, where ? `${here}${where}` : ""),
      known.length ? sparkline(points[key], signal.healthy, `${name} over the ${period}: ${here}${range}`) : null,
      known.length ? make("span", { class: "quiet scale" }, make("span", {}, `${here}${brief(seconds)}`), make("span", {}, range)) : null);
  }));
  const count = points.runs.reduce((sum, runs) => sum + runs, 0);
  at("scope").hidden = !state.source;
  at("scope").textContent = `These signals are those of all processes, by ${state.source}. Their lines, and the agents, runs, models and experiments below, are of this process alone.`;
  at("basis").replaceChildren(...basis(state, count).map((text) => make("li", {}, text)));
}

// What the signals rest on.
function basis(state, count) {
  const found = state.signals, { seconds, width_s } = state.series;
  const lost = [["failed", found.failed], ["blocked", found.blocked]].filter(([, each]) => each?.runs)
    .map(([how, each]) => `${atLeast(each.cost_usd, each.unpriced)} in ${how} runs`);
  const wasted = found.wasted_cost_usd === null ? [] : [`${atLeast(found.wasted_cost_usd, found.wasted_unpriced_calls !== 0)} on model calls that did not succeed`];
  const how = found.failed === null ? "" : endings(found.failed.runs, found.blocked.runs);
  return [
    `${many(found.runs, "run")}: ${number(found.successes)} successful${how ? `, ${how}` : ""}; ` +
      `${number(count)} ${state.source ? "of this process " : ""}in the last ${span(seconds)}, a point for every ${span(width_s)}`,
    `${atLeast(found.total_cost_usd, found.cost_coverage !== null && found.cost_coverage < 1)} spent${[...lost, ...wasted].length ? `, of it ${[...lost, ...wasted].join(", ")}` : ""}`,
    checks(found),
    `${many(found.feedback, "verdict")} of users (${percent(found.feedback_response_rate_percent)} of runs)`,
    ...(found.since ? [`counted since ${moment(found.since)}`] : []),
  ];
}

// The program may report violations itself, without a check; and a check counts with its run, once that is over.
function checks(found) {
  if (found.checked_runs === null) return "which runs policies checked is not known";
  const failed = found.check_failed_runs ? `; ${many(found.check_failed_runs, "run")} could not be checked` : "";
  if (found.checked_runs || found.check_failed_runs) return `${number(found.checked_runs)} of ${many(found.runs, "run")} checked by policies${failed}`;
  return found.violations ? "violations are reported by the program or from open runs: no finished run was checked by policies" : "no run was checked by policies";
}

// What an engineer who was called has to read first, the worst on top; empty where nothing is wrong.
function wrong(state) {
  const found = [];
  for (const [key, name, show, bound, from] of SIGNALS) {
    const signal = state.signals.signals[key];
    if (signal.verdict !== "critical" && signal.verdict !== "warning") continue;
    const told = from(state), where = told && state.source ? `in this process ${told}` : told;
    found.push([signal.verdict, `${name} ${show(signal.value)}`, `healthy is ${bound(signal.healthy)}${where ? `; ${where}` : ""}`]);
  }
  // A workflow that fails may be one of few runs among many that go well: then no signal tells it.
  const bounds = state.signals.signals.success_rate, isTold = ["critical", "warning"].includes(bounds.verdict);
  for (const each of isTold ? [] : state.workflows) {
    if (each.failed >= 3 && each.success_rate < bounds.warning) found.push(["warning", `Workflow ${each.workflow} ${percent(each.success_rate)} successful`, ended(each)]);
  }
  for (const problem of state.problems) found.push(["critical", "Out of reach", problem]);
  for (const problem of state.health) found.push(["warning", "Figures may not be whole", problem]);
  for (const one of state.budgets) {
    if (one.ratio >= 1) found.push([one.on_exceed === "block" ? "critical" : "warning", `Budget ${one.name} is spent`,
      `${dollars(one.spent_usd)} of ${dollars(one.limit_usd)}${one.on_exceed === "block" ? "; further calls are refused" : ""}`]);
    else if (one.refused_calls) found.push(["warning", `Budget ${one.name} refuses calls`, `${many(one.refused_calls, "call")} refused; ${dollars(one.spent_usd)} of ${dollars(one.limit_usd)} spent`]);
  }
  for (const report of state.experiments) {
    if (report.assignment?.broken) found.push(["warning", `Experiment ${report.experiment}`, "its units are not shared out as designed"]);
  }
  return found.sort((a, b) => (a[0] === "critical" ? 0 : 1) - (b[0] === "critical" ? 0 : 1));
}

let said = "";
function drawWrong(state) {
  const found = wrong(state);
  const errors = groups(state.events).filter((event) => event.event === "error").sort((a, b) => b.count - a.count).slice(0, 3);
  const rows = found.map(([verdict, what, why]) => make("li", {}, make("span", { class: `badge ${verdict}` }, verdict), " ", make("strong", {}, what), ` – ${why}`));
  for (const worst of found.length ? errors : []) rows.push(make("li", {}, make("span", { class: "badge quiet" }, "latest errors"), " ", make("strong", {}, [worst.agent, worst.message].filter(Boolean).join(": ")), ` – ${worst.reason} × ${worst.count}`));
  at("wrong").hidden = !found.length;
  at("wrong-list").replaceChildren(...rows);
  // Told to those who listen only where something else is wrong than before, not whenever a figure moves.
  const now = found.map(([verdict, what]) => `${verdict} ${what.replace(/[\d.,$%]+/g, "").trim()}`).join("; ");
  if (now !== said) at("said").textContent = now || (said ? "all is well again" : "");
  said = now;
}

// Only what has changed is drawn again.
const drawn = new Map();
function part(name, data, show) {
  const text = JSON.stringify(data);
  if (drawn.get(name) === text) return;
  drawn.set(name, text);
  show(data);
}

function draw(state) {
  drawSignals(state);
  drawWrong(state);
  part("events", state.events, drawEvents);
  part("workflows", [state.workflows, state.agents], ([workflows, agents]) => drawWorkflows(workflows, agents));
  part("agents", state.agents, drawAgents);
  drawRuns(state);
  part("budgets", state.budgets, drawBudgets);
  part("models", state.models, drawModels);
  part("experiments", state.experiments, drawExperiments);
}

// --- talking to the server -----------------------------------------------------------------------

const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

onVote(async (request_id, correct) => {
  const answer = await fetch(`${root}/feedback`, {
    method: "POST", headers: { "Content-Type": "application/json", ...authorization() },
    body: JSON.stringify({ request_id, correct, user: "page" }),
  });
  at("status").textContent = answer.ok ? "thank you" : `the vote was not taken (${answer.status})`;
  return answer.ok;
});

async function read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const messages = text.split("\n\n");
    text = messages.pop();
    for (const message of messages) if (message.startsWith("data: ")) draw(JSON.parse(message.slice(6)));
  }
}

function show(status, lost) {
  at("status").textContent = status;
  document.body.classList.toggle("lost", lost);
}

async function watch() {
  watching?.abort();
  const mine = (watching = new AbortController());
  const asked = at("window").value;
  try {
    const answer = await fetch(`${root}/live${asked ? `?window=${asked}` : ""}`, { headers: authorization(), signal: mine.signal });
    at("login").hidden = answer.status !== 401;
    if (answer.status === 401) return show("a token is needed", false);
    if (answer.ok) {
      show("live", false);
      sessionStorage.setItem("token", token);
      await read(answer.body);
    }
  } catch (error) {
    if (!(error instanceof TypeError || error.name === "AbortError")) console.error(error); // a bug of ours, not the net's
  }
  if (mine.signal.aborted) return;
  show("not connected: what is shown is old; trying again …", true);
  setTimeout(() => { if (!mine.signal.aborted) watch(); }, 2000);
}

at("window").value = sessionStorage.getItem("window") ?? "";
at("window").addEventListener("change", () => { sessionStorage.setItem("window", at("window").value); watch(); });
at("login").addEventListener("submit", (event) => { event.preventDefault(); token = at("token").value; watch(); });
if (location.hash.includes("token=")) history.replaceState(null, "", location.pathname);
watch();
