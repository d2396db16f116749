// Agents, models, experiments and budgets beside each other.

import { at, atLeast, bar, dollars, fill, make, many, milliseconds, moment, number, percent, sync, table } from "./page.shapes.js";

const heading = (text, note, title) => ({ text, note, title, class: "num" });
const amount = (text, note, className) => ({ text, note, class: `num ${className || ""}` });

// --- workflows and agents ------------------------------------------------------------------------

export const nameOf = (each) => (each.agent === "none" ? "(outside of agents)" : each.agent);

// An agent that runs by itself opens a workflow of its name: the agents tell of that one.
export const ofTheirOwn = (workflows, agents) => workflows.filter((each) => !agents.some(({ agent }) => agent === each.workflow));

// How many runs, their share, and what was spent in them.
function ended(runs, all, usd, unpriced, tone) {
  return amount(number(runs), runs ? `${percent((100 * runs) / all)} · ${atLeast(usd, unpriced)}` : null, runs ? tone : null);
}

const SPENT = "all that was spent in these runs, also on calls that succeeded";
const RUN_HEADS = [heading("Runs"), heading("Failed", "share · spent", SPENT), heading("Blocked", "share · spent", SPENT), heading("p95 latency"), heading("LLM calls"), heading("Cost")];

function runCells(each, most) {
  const calls = [each.failed_calls ? `${number(each.failed_calls)} failed` : null, each.blocked_calls ? `${number(each.blocked_calls)} blocked` : null];
  return [
    amount(number(each.runs)),
    ended(each.failed, each.runs, each.failed_cost_usd, each.failed_unpriced, "error"),
    ended(each.blocked_runs, each.runs, each.blocked_runs_cost_usd, each.blocked_runs_unpriced, "blocked"),
    amount(milliseconds(each.p95_latency_ms)),
    amount(number(each.calls), calls.filter(Boolean)),
    { class: "num", text: make("span", {}, atLeast(each.cost_usd, each.unpriced_calls), bar(each.cost_usd / most)) },
  ];
}

const highest = (rows) => Math.max(...rows.map((each) => each.cost_usd), 1e-12);

export function drawWorkflows(workflows, agents) {
  at("workflows-part").hidden = !ofTheirOwn(workflows, agents).length;
  const rows = workflows.map((each) => [each.workflow, ...runCells(each, highest(workflows))]);
  fill(at("workflows"), table("Figures by workflow", ["Workflow", ...RUN_HEADS], rows));
}

export function drawAgents(agents) {
  if (!agents.length) { fill(at("agents"), make("p", { class: "quiet" }, "No agent has run yet.")); return; }
  const rows = agents.map((each) => [
    nameOf(each),
    ...runCells(each, highest(agents)),
    amount(number(each.violations), each.guardrail_blocks ? `${number(each.guardrail_blocks)} stopped by guardrails` : null, each.violations ? "blocked" : null),
    amount(percent(each.correctness_percent), each.feedback ? many(each.feedback, "vote") : null),
  ]);
  fill(at("agents"), table("Figures by agent", ["Agent", ...RUN_HEADS, heading("Violations"), heading("Correct")], rows));
}

// --- models --------------------------------------------------------------------------------------

const FIGURES = [
  ["success_rate", "Success", percent],
  ["p50_latency_ms", "Latency p50", milliseconds],
  ["p95_latency_ms", "Latency p95", milliseconds],
  ["p99_latency_ms", "Latency p99", milliseconds],
  ["first_chunk_p50_ms", "First chunk p50", milliseconds],
  ["first_chunk_p95_ms", "First chunk p95", milliseconds],
  ["tokens_per_second", "Tokens a second", number],
  ["cost_per_call_usd", "Cost per call", dollars],
  ["cost_per_successful_run_usd", "Cost per successful run", dollars],
  ["correctness_percent", "User correctness", percent],
];

function interval({ low, high }, show) {
  return low === null && high === null ? null : `${low === null ? "?" : show(low)} … ${high === null ? "?" : show(high)}`;
}

function limits(model) {
  const hits = Object.entries(model.limit_hits);
  return amount(number(hits.reduce((sum, [, count]) => sum + count, 0)), hits.map(([limit, count]) => `${limit} ${count}`).join(", "));
}

export function drawModels({ models, findings, caution }) {
  if (!models.length) { fill(at("models"), make("p", { class: "quiet" }, "No model has been called yet.")); return; }
  const found = Object.fromEntries(findings.map((each) => [each.figure, each]));
  const told = { best: null, "too few": "too few calls" };
  const figure = ([key, name, show]) => [name,
    ...models.map((model) => {
      const best = found[key]?.best === model.model;
      return amount(`${best ? "✓ " : ""}${show(model[key].value)}`, interval(model[key], show), best ? "best" : null);
    }),
    found[key] ? { text: found[key].best ?? told[found[key].standing] ?? found[key].standing, class: found[key].best ? "best" : "quiet" } : ""];
  const row = (name, show) => [name, ...models.map(show), ""];
  const rows = [
    row("Calls", (model) => amount(number(model.calls), model.blocked_calls ? `${number(model.blocked_calls)} refused before sent` : null)),
    ...FIGURES.map(figure),
    row("Cached input", (model) => amount(percent(model.cached_share_percent))),
    row("Token limits hit", limits),
    row("Cost", (model) => amount(atLeast(model.total_cost_usd, model.unpriced_calls), model.unpriced_calls ? `${many(model.unpriced_calls, "call")} unpriced` : null)),
  ];
  const heads = ["", ...models.map((model) => heading(model.model)), "Best"];
  fill(at("models"), table("Model comparison", heads, rows, "figures"),
    make("p", { class: "quiet" }, `Beside each figure its 95 % interval; best is a model whose interval overlaps no other's. ${caution}`));
}

// --- experiments ---------------------------------------------------------------------------------

const EFFECTS = {
  success_rate: ["success rate", (value) => value.toFixed(1), " points"],
  correctness: ["correctness", (value) => value.toFixed(1), " points"],
  cost_per_run_usd: ["cost per run", dollars, ""],
  latency_ms: ["mean latency", milliseconds, ""],
};
const TONES = { better: "success", worse: "error", "assignment broken": "error", "trade-off": "blocked" };
const word = (verdict) => make("span", { class: `word ${TONES[verdict] || "quiet"}` }, verdict);

function effect(found) {
  const [name, show, unit] = EFFECTS[found.figure];
  const signed = (value) => `${value > 0 ? "+" : ""}${show(value)}`.replace(/^-/, "−");
  return [
    `${found.variant}: ${name}`,
    amount(`${signed(found.difference)}${unit}`, `${signed(found.low)} … ${signed(found.high)}`),
    word(found.verdict),
    amount(found.sure_percent === null || found.verdict === "keep running" ? null : `${Math.min(found.sure_percent, 99.9).toFixed(1)} % sure`),
  ];
}

function experiment(report) {
  const name = make("h3", {}, report.experiment, " ");
  if (report.problem) return make("div", {}, name, make("p", { class: "quiet" }, report.problem));
  for (const [variant, verdict] of Object.entries(report.verdicts)) name.append(make("span", { class: "verdict" }, `${variant}: `, word(verdict)));
  const rows = report.variants.map((each) => [
    each.variant, amount(number(each.runs)), amount(number(each.units), `of ${percent(each.share_percent)}`),
    amount(percent(each.success_rate)), amount(percent(each.correctness_percent), each.feedback ? many(each.feedback, "vote") : null),
    amount(dollars(each.cost_per_run_usd)), amount(milliseconds(each.p50_latency_ms)), amount(milliseconds(each.p95_latency_ms)),
  ]);
  const heads = ["Variant", heading("Runs"), heading("Units"), heading("Success"), heading("Correct"), heading("Cost per run"), heading("p50"), heading("p95")];
  const effects = report.assignment.broken ? [] : report.effects.filter((each) => each.low !== null);
  const early = report.window_seconds === null && !report.assignment.broken && !effects.length;
  return make("div", { class: "experiment" }, name,
    make("p", { class: report.assignment.broken ? "alarm" : "quiet" }, report.explanation),
    table(`Variants of ${report.experiment}`, heads, rows),
    effects.length ? table(`Effects in ${report.experiment}`,
      [`Against ${report.variants[0].variant}`, heading("Difference", "95 % at every look"), "Verdict", heading("How sure")], effects.map(effect))
      : early ? make("p", { class: "quiet" }, "Too few runs to compare: a verdict takes 100 runs of each variant, of some 40 units or more.") : null);
}

export function drawExperiments(reports) {
  fill(at("experiments"), ...(reports.length ? reports.map(experiment) : [make("p", { class: "quiet" }, "None has had a run yet.")]));
}

// --- budgets -------------------------------------------------------------------------------------

export function drawBudgets(budgets) {
  const rows = budgets.map((one) => [JSON.stringify(one), () => {
    const state = one.ratio >= 1 ? "over" : one.ratio >= one.soft_ratio || one.refused_calls ? "near" : "";
    const tone = { over: "error", near: "blocked" }[state] || "";
    const resets = one.resets_at ? `resets ${moment(one.resets_at)}` : "never resets";
    const name = `${one.name}${one.account ? ` (${one.account})` : ""}`;
    const window = one.window === "total" ? "in all" : `each ${one.window}`;
    return make("li", {}, make("div", { class: "row" }, make("span", {}, name),
      make("span", { class: `word num ${tone}` }, `${Math.round(100 * one.ratio).toLocaleString("en-US")} %`)), bar(one.ratio, state),
      make("div", { class: "quiet" }, `${dollars(one.spent_usd)} of ${dollars(one.limit_usd)} ${window}${Number(one.reserved_usd) ? `, ${dollars(one.reserved_usd)} reserved` : ""}; ${one.on_exceed === "block" ? "blocks" : "warns"}${one.refused_calls ? `, ${many(one.refused_calls, "call")} refused` : ""}; ${resets}`));
  }]);
  sync(at("budgets"), rows.length ? rows : [["", () => make("li", { class: "quiet" }, "None is set.")]]);
}

