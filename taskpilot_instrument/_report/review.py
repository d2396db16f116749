"""What an operator looks at each day, week and month."""

from typing import Final, NamedTuple

from taskpilot_instrument._report.times import Period
from taskpilot_instrument.semconv import (
    G_COST_PER_TASK,
    G_P95_LATENCY_MS,
    G_SUCCESS_RATE,
    G_USER_CORRECTNESS,
    G_VIOLATION_RATE,
)


class Review(NamedTuple):
    """What a review shows.

    :param title: its name.
    :param sections: keys of figures under the heading of each section.
    :param plots: keys of figures whose course is drawn.
    :param tables: keys of tables.
    """

    title: str
    sections: dict[str, tuple[str, ...]]
    plots: tuple[str, ...]
    tables: tuple[str, ...]


_GOLDEN: Final = (G_SUCCESS_RATE, G_P95_LATENCY_MS, G_COST_PER_TASK, G_USER_CORRECTNESS, G_VIOLATION_RATE)

REVIEWS: Final = {
    Period.DAY: Review(
        "Daily review",
        {
            "Golden signals": _GOLDEN,
            "Work and money": (
                "runs", "failed_runs", "llm_calls", "input_tokens", "output_tokens", "total_cost_usd",
                "policy_violations", "guardrail_blocks",
            ),
        },
        ("runs", G_SUCCESS_RATE, G_P95_LATENCY_MS, "total_cost_usd"),
        ("workflows", "errors", "policies"),
    ),
    Period.WEEK: Review(
        "Weekly review",
        {
            "Golden signals": _GOLDEN,
            "Cost": ("total_cost_usd", "lost_cost_usd", "wasted_cost_usd", "waste_percent", "unpriced_calls"),
            "Latency and errors": (
                "runs", "failed_runs", "mean_latency_ms", "llm_calls", "llm_success_rate", "retries",
            ),
        },
        ("total_cost_usd", G_COST_PER_TASK, G_P95_LATENCY_MS, G_SUCCESS_RATE),
        ("outcomes", "errors", "models", "workflows"),
    ),
    Period.MONTH: Review(
        "Monthly review",
        {
            "Golden signals": _GOLDEN,
            "Cost and efficiency": (
                "total_cost_usd", "runs", "tokens_per_run", "lost_cost_usd", "waste_percent", "wasted_cost_usd",
                "cost_coverage_percent",
            ),
            "Quality and safety": (
                "failed_runs", "feedback", "feedback_per_100_runs", "policy_violations", "guardrail_blocks",
                "checked_runs_percent",
            ),
        },
        ("total_cost_usd", G_COST_PER_TASK, G_SUCCESS_RATE, G_USER_CORRECTNESS, G_VIOLATION_RATE),
        ("models", "agents", "workflows", "policies"),
    ),
}  # fmt: skip
