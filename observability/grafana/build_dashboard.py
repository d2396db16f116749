"""Write golden-signals-dashboard.json, from the names in the library's own table.

    python observability/grafana/build_dashboard.py           # write the file
    python observability/grafana/build_dashboard.py --check   # say whether it is up to date

Needs ``pip install -e '.[dev]'``, for grafana-foundation-sdk.
"""

import sys
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from panels import (
    GREEN,
    PROMETHEUS,
    RANGE,
    RED,
    YELLOW,
    bars,
    colours,
    columns,
    heat,
    lines,
    number,
    per_second,
    quantile,
    query,
    series,
    share,
    steps,
    total,
)

from taskpilot_instrument import semconv

FILE: Final = Path(__file__).with_name("golden-signals-dashboard.json")
CORRECT: Final = f'verdict="{semconv.VERDICT_CORRECT}"'
SUCCESS: Final = f'outcome="{semconv.Outcome.SUCCESS}"'
FAILED: Final = f'outcome!="{semconv.Outcome.SUCCESS}"'
#: A call that was refused before it was sent is no request to a model.
SENT: Final = f'outcome!="{semconv.Outcome.BLOCKED}"'
REFUSED: Final = f'outcome="{semconv.Outcome.BLOCKED}"'

# --- rows ---------------------------------------------------------------------------------------


def golden_signals() -> list[Any]:
    """Return the five signals, and the traffic that they rest on.

    Spend, violations and feedback know no workflow, and runs no agent or model. A ratio of both is that of the service.
    """
    runs, successes = total(semconv.M_WORKFLOW_RUNS), total(semconv.M_WORKFLOW_RUNS, SUCCESS)
    all_runs = total(semconv.M_WORKFLOW_RUNS, whole=True)
    all_successes = total(semconv.M_WORKFLOW_RUNS, SUCCESS, whole=True)
    spent, violations = (total(family, whole=True) for family in (semconv.M_LLM_COST, semconv.M_POLICY_VIOLATIONS))
    every, ok = (per_second(semconv.M_WORKFLOW_RUNS, *matchers, by="workflow") for matchers in ((), (SUCCESS,)))
    verdicts, correct = (total(semconv.M_FEEDBACK, *matchers, whole=True) for matchers in ((), (CORRECT,)))
    return [
        number("Success rate", "percent", share(successes, runs), steps=steps(semconv.G_SUCCESS_RATE),
               what="Successful runs ÷ runs. Healthy from 95 %, critical below 90 %."),
        number("p95 latency", "s", quantile(95, semconv.M_WORKFLOW_DURATION, window=RANGE), decimals=2,
               steps=steps(semconv.G_P95_LATENCY_MS, 1 / 1000),
               what="19 of 20 runs are faster. Healthy up to 2 s, critical beyond 5 s."),
        number("Cost per task", "currencyUSD", f"{spent} / ({all_successes} > 0)", decimals=4,
               steps=steps(semconv.G_COST_PER_TASK),
               what="All spend, failed runs included ÷ successful runs. Healthy up to $0.10, critical beyond $0.50. "
               "Of the whole service."),
        number("User correctness", "percent", share(correct, verdicts),
               what="Confirmed correct ÷ all verdicts of users. No threshold. Of the whole service."),
        number("Policy violations", "percent", share(violations, all_runs),
               steps=steps(semconv.G_VIOLATION_RATE),
               what="Violations ÷ runs. Healthy up to 1 %, critical beyond 2 %. Of the whole service."),
        number("Runs", "short", runs, decimals=0, what="Workflow runs, however they ended."),
        lines("Runs by outcome", "ops", query(per_second(semconv.M_WORKFLOW_RUNS, by="outcome"), "{{outcome}}"),
              what="Workflow runs a second."),
        lines("Success rate by workflow", "percent",
              query(share(ok, every, by="workflow"), "{{workflow}}"),
              what="Successful runs ÷ runs of each workflow."),
    ]  # fmt: skip


def cost() -> list[Any]:
    """Return what is spent, by agent and model, and how much of it for nothing."""
    spent, wasted = total(semconv.M_LLM_COST), total(semconv.M_LLM_WASTED_COST)
    return [
        number("Spent", "currencyUSD", spent, decimals=4,
               what="Spend whose price is known, in the range on the screen."),
        bars("Cost by agent", "currencyUSD", total(semconv.M_LLM_COST, by="agent"), "{{agent}}",
             what="Spend of each agent.", width=10),
        bars("Cost by model", "currencyUSD", total(semconv.M_LLM_COST, by="model"), "{{model}}",
             what="Spend of each model.", width=10),
        lines("Spending by agent", "currencyUSD",
              query(f"3600 * {per_second(semconv.M_LLM_COST, by='agent')}", "{{agent}}"), what="USD an hour."),
        lines("Spending by model", "currencyUSD",
              query(f"3600 * {per_second(semconv.M_LLM_COST, by='model')}", "{{model}}"), what="USD an hour."),
        number("Wasted share", "percent", share(wasted, spent),
               what="Known spend on calls that failed, were cancelled or abandoned ÷ all known spend."),
        bars("Wasted spend by agent", "currencyUSD", total(semconv.M_LLM_WASTED_COST, by="agent, outcome"),
             "{{agent}} {{outcome}}", what="Known spend on calls that did not succeed, by agent and outcome."),
        bars("Wasted tokens by agent", "short", total(semconv.M_LLM_WASTED_TOKENS, by="agent, outcome"),
             "{{agent}} {{outcome}}", what="Tokens of these calls, input and output.", width=6),
        bars("Retries by agent", "short", total(semconv.M_LLM_RETRIES, by="agent, model"), "{{agent}} {{model}}",
             what="Requests that the client sent again, also where the call succeeded at last.", width=6),
    ]  # fmt: skip


def tokens() -> list[Any]:
    """Return where tokens go."""
    return [
        lines("Tokens by kind", "short", query(per_second(semconv.M_LLM_TOKENS, by="kind"), "{{kind}}"), width=8,
              what="Tokens a second. Input includes cached ones, output includes reasoning ones."),
        bars("Tokens by model", "short", total(semconv.M_LLM_TOKENS, 'kind=~"input|output"', by="model"), "{{model}}",
             what="Input and output tokens of each model."),
        bars("Token limits hit", "short", total(semconv.M_TOKEN_LIMIT_HITS, by="model, limit"), "{{model}} {{limit}}",
             what="Answers that were cut off, or never begun, at a limit."),
    ]  # fmt: skip


def latency() -> list[Any]:
    """Return how long things take, with exemplars that open the trace."""
    run = semconv.M_WORKFLOW_DURATION
    return [
        lines("Workflow latency", "s",
              *(query(quantile(percent, run), f"p{percent}", exemplar=percent == 95) for percent in (50, 95, 99)),
              what="Percentiles of run latency. A dot is one run: it opens its trace."),
        heat("Workflow latency, all runs", run,
             what="How many runs took how long. A dot is one run: it opens its trace."),
        lines("p95 latency by agent", "s", query(quantile(95, semconv.M_AGENT_DURATION, "agent"), "{{agent}}"), width=6,
              what="19 of 20 runs of an agent are faster."),
        lines("p95 latency by tool", "s", query(quantile(95, semconv.M_TOOL_DURATION, "tool"), "{{tool}}"), width=6,
              what="19 of 20 calls of a tool are faster."),
        lines("p95 latency by model", "s", query(quantile(95, semconv.M_LLM_DURATION, "model"), "{{model}}"), width=6,
              what="19 of 20 calls of a model are faster."),
        lines("p95 time to first chunk", "s",
              query(quantile(95, semconv.M_LLM_TIME_TO_FIRST_CHUNK, "model"), "{{model}}"), width=6,
              what="How long a streamed answer takes to begin."),
    ]  # fmt: skip


def errors() -> list[Any]:
    """Return what fails, and why."""
    return [
        lines("LLM calls by error", "ops",
              query(per_second(semconv.M_LLM_CALLS, FAILED, by="error_type"), "{{error_type}}"), width=8,
              what="LLM calls a second that did not succeed, by type of error, and those that were refused before they "
              "were sent."),
        lines("Agent runs that did not succeed", "ops",
              query(per_second(semconv.M_AGENT_RUNS, FAILED, by="agent, outcome"), "{{agent}} {{outcome}}"), width=8,
              what="Agent runs a second that failed, were cancelled or were blocked."),
        lines("Tool calls that did not succeed", "ops",
              query(per_second(semconv.M_TOOL_CALLS, FAILED, by="tool, outcome"), "{{tool}} {{outcome}}"), width=8,
              what="Tool calls a second that failed, were cancelled or were blocked."),
    ]  # fmt: skip


def models_compared() -> list[Any]:
    """Return one row for each model."""
    calls, ok, refused = (total(semconv.M_LLM_CALLS, matcher, by="model") for matcher in (SENT, SUCCESS, REFUSED))
    spent = total(semconv.M_LLM_COST, by="model")
    sent = total(semconv.M_LLM_TOKENS, 'kind=~"input|output"', by="model")
    return [
        columns(
            "Model comparison", "model",
            ("Calls", "short", calls),
            ("Refused", "short", refused),
            ("Success rate", "percent", share(ok, calls, by="model")),
            ("Cost", "currencyUSD", spent),
            ("Cost per 1,000 calls", "currencyUSD", f"1000 * {spent} / ({calls} > 0)"),
            ("Tokens per call", "short", f"{sent} / ({calls} > 0)"),
            ("p95 latency", "s", quantile(95, semconv.M_LLM_DURATION, "model", RANGE)),
            ("p95 first chunk", "s", quantile(95, semconv.M_LLM_TIME_TO_FIRST_CHUNK, "model", RANGE)),
            what="The same figures for each model, over the range on the screen. Calls that were refused before they "
            "were sent are told apart, and in none of the others.",
        )
    ]  # fmt: skip


def budgets() -> list[Any]:
    """Return how much of each budget is left. Processes that share one each tell its whole: hence max, not sum."""
    spent, limit = (
        f"max by (budget, window) ({series(family)})" for family in (semconv.M_BUDGET_SPENT, semconv.M_BUDGET_LIMIT)
    )
    return [
        bars("Budget used", "percent", f"100 * {spent} / ({limit} > 0)", "{{budget}} {{window}}",
             steps=colours((None, GREEN), (80, YELLOW), (100, RED)), what="Spent ÷ limit. A warning from 80 %."),
        lines("Budget spent", "currencyUSD", query(spent, "{{budget}} {{window}}"), query(limit, "{{budget}} limit"),
              width=8, what="What is spent of each budget, and its limit."),
        bars("Calls refused", "short", total(semconv.M_BUDGET_BLOCKED, by="budget, window"), "{{budget}} {{window}}",
             what="Calls that were not made because the budget was spent."),
    ]  # fmt: skip


def safety() -> list[Any]:
    """Return what policies and guardrails stopped."""
    return [
        bars("Policy violations", "short", total(semconv.M_POLICY_VIOLATIONS, by="agent, policy"),
             "{{agent}} {{policy}}", what="Violations by agent and policy.", width=12),
        bars("Guardrail blocks", "short", total(semconv.M_GUARDRAIL_BLOCKS, by="agent, guardrail, direction"),
             "{{agent}} {{guardrail}} {{direction}}", width=12,
             what="Inputs and outputs that a guardrail stopped."),
    ]  # fmt: skip


def feedback() -> list[Any]:
    """Return what users say."""
    verdicts, correct = (total(semconv.M_FEEDBACK, *matchers, by="agent") for matchers in ((), (CORRECT,)))
    return [
        lines("Verdicts of users", "ops", query(per_second(semconv.M_FEEDBACK, by="verdict"), "{{verdict}}"),
              what="Verdicts a second."),
        bars("Correctness by agent", "percent", share(correct, verdicts, by="agent"),
             "{{agent}}", what="Confirmed correct ÷ all verdicts on an agent's results.", width=12),
    ]  # fmt: skip


def experiments() -> list[Any]:
    """Return one row for each variant."""
    by = "experiment, variant"
    runs, ok = (total(semconv.M_EXPERIMENT_RUNS, *matchers, by=by) for matchers in ((), (SUCCESS,)))
    return [
        columns(
            "Experiments", "experiment",
            ("Runs", "short", runs),
            ("Success rate", "percent", share(ok, runs, by=by)),
            ("Cost per task", "currencyUSD", f"{total(semconv.M_EXPERIMENT_COST, by=by)} / ({ok} > 0)"),
            ("p95 latency", "s", quantile(95, semconv.M_EXPERIMENT_DURATION, by, RANGE)),
            what="The variants of each experiment side by side. Whether a difference is chance is not said here.",
        )
    ]  # fmt: skip


def instrumentation() -> list[Any]:
    """Return how well the instrumentation itself does."""
    return [
        number("Targets that answer", "percent", 'avg(100 * up{job=~"$service"})', decimals=0,
               steps=colours((None, RED), (100, GREEN)), what="Processes that Prometheus can scrape."),
        bars("Errors of the instrumentation", "short", total(semconv.M_INSTRUMENT_ERRORS, by="where"), "{{where}}",
             what="Errors of our own that were swallowed, by place. Should be empty.", width=7),
        bars("Values beyond a label's cap", "short", total(semconv.M_LABEL_OVERFLOW, by="label"), "{{label}}",
             what="Values that were counted as other. Should be empty.", width=7),
        bars("Calls without a price", "short", total(semconv.M_LLM_UNPRICED, by="model"), "{{model}}",
             what="Calls that are missing from every cost. Should be empty.", width=6),
    ]  # fmt: skip


ROWS: Final = {
    "Golden signals": golden_signals,
    "Cost": cost,
    "Tokens": tokens,
    "Latency": latency,
    "Errors": errors,
    "Models": models_compared,
    "Budgets": budgets,
    "Safety": safety,
    "Feedback": feedback,
    "Experiments": experiments,
    "Instrumentation": instrumentation,
}

# --- the whole ----------------------------------------------------------------------------------


def variables() -> list[Any]:
    """Return what can be chosen at the top."""
    sources = {
        "workflow": semconv.M_WORKFLOW_RUNS,
        "agent": semconv.M_AGENT_RUNS,
        "model": semconv.M_LLM_CALLS,
    }
    made: list[Any] = [dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")]
    made.append(_choice("service", "Service", f"label_values({semconv.M_WORKFLOW_RUNS}, job)"))
    for label, family in sources.items():
        made.append(_choice(label, label.capitalize(), f'label_values({family}{{job=~"$service"}}, {label})'))
    return made


def _choice(name: str, label: str, expr: str) -> dashboard.QueryVariable:
    """Return a variable; all of it includes the series that do not have the label at all."""
    made = dashboard.QueryVariable(name).label(label).datasource(PROMETHEUS).query(expr)
    made = made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return made.multi(multi=True).include_all(include_all=True).all_value(".*").current(everything)


def build() -> str:
    """Return the dashboard as JSON."""
    made = dashboard.Dashboard("TaskPilot golden signals").uid("taskpilot-golden-signals").tags(["taskpilot", "agents"])
    made = made.description("Does it succeed, how fast, at what cost, do users agree, does it stay within policy?")
    made = made.time("now-6h", "now").refresh("30s").timezone("browser").editable()
    made = made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    for each in variables():
        made = made.with_variable(each)
    for title, panels in ROWS.items():
        made = made.with_row(dashboard.Row(title))
        for panel in panels():
            made = made.with_panel(panel)
    built = made.build()
    for number_, panel in enumerate(built.panels or [], 1):
        panel.id_val = number_
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


def main() -> int:
    """Write the file, or check it; return the exit status."""
    text = build()
    if "--check" in sys.argv[1:]:
        return 0 if FILE.exists() and FILE.read_text() == text else 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
