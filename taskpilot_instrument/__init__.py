"""Two decorators and one call turn any Python agent into spans, tags, logs and metrics."""

from taskpilot_instrument._experiment_report import ExperimentReport
from taskpilot_instrument._instrument import (
    add_budget,
    budget_status,
    compare_models,
    experiment_report,
    feedback_token,
    golden_signals,
    health,
    instrument,
    record_feedback,
    uninstrument,
)
from taskpilot_instrument._report.entry import report
from taskpilot_instrument._text_rules import Keywords, Patterns
from taskpilot_instrument._tool_rules import ArgumentRule, MaxToolCalls, ToolAllowList
from taskpilot_instrument._version import __version__
from taskpilot_instrument.alerts import Alert, AlertFired
from taskpilot_instrument.budgets import Budget, BudgetStatus
from taskpilot_instrument.comparison import ModelComparison
from taskpilot_instrument.decorators import observed_agent, observed_tool, observed_workflow
from taskpilot_instrument.errors import (
    BlockedError,
    BudgetExceededError,
    ConfigurationError,
    DeliveryError,
    GuardrailBlockedError,
    LedgerError,
    NotInstrumentedError,
    PolicyViolationError,
    RunawayError,
    SourceError,
    TaskpilotError,
    TokenLimitError,
)
from taskpilot_instrument.experiments import Variant, experiment
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.guardrails import Guardrail
from taskpilot_instrument.health import Health
from taskpilot_instrument.limits import TokenLimit
from taskpilot_instrument.policy import Allow, Deny, Flag, Policy, Subject
from taskpilot_instrument.pricing import MODEL_PRICING, PriceBook, calculate_cost
from taskpilot_instrument.propagation import PropagationMiddleware, async_httpx_hook, httpx_hook, inject_headers
from taskpilot_instrument.runaway import Runaway
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks.logs import TaskpilotFields, add_taskpilot_fields
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.tracking import track_llm_metrics
from taskpilot_instrument.usage import TokenUsage
from taskpilot_instrument.workflow import WorkflowRun, workflow

__all__ = [
    "MODEL_PRICING",
    "Alert",
    "AlertFired",
    "Allow",
    "ArgumentRule",
    "BlockedError",
    "Budget",
    "BudgetExceededError",
    "BudgetStatus",
    "ConfigurationError",
    "DeliveryError",
    "Deny",
    "ExperimentReport",
    "Flag",
    "GoldenSignals",
    "Guardrail",
    "GuardrailBlockedError",
    "Health",
    "Instrumentation",
    "Keywords",
    "LedgerError",
    "MaxToolCalls",
    "MetricsBackend",
    "ModelComparison",
    "NotInstrumentedError",
    "Patterns",
    "Policy",
    "PolicyViolationError",
    "PriceBook",
    "PropagationMiddleware",
    "Runaway",
    "RunawayError",
    "Settings",
    "SourceError",
    "Subject",
    "TaskpilotError",
    "TaskpilotFields",
    "TokenLimit",
    "TokenLimitError",
    "TokenUsage",
    "ToolAllowList",
    "Variant",
    "WorkflowRun",
    "__version__",
    "add_budget",
    "add_taskpilot_fields",
    "async_httpx_hook",
    "budget_status",
    "calculate_cost",
    "compare_models",
    "experiment",
    "experiment_report",
    "feedback_token",
    "golden_signals",
    "health",
    "httpx_hook",
    "inject_headers",
    "instrument",
    "observed_agent",
    "observed_tool",
    "observed_workflow",
    "record_feedback",
    "report",
    "track_llm_metrics",
    "uninstrument",
    "workflow",
]
