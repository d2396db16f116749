"""Two decorators and one call turn any Python agent into spans, tags, logs and metrics."""

from taskpilot_instrument._version import __version__
from taskpilot_instrument.alerts import Alert, AlertFired
from taskpilot_instrument.decorators import observed_agent, observed_tool, observed_workflow
from taskpilot_instrument.errors import (
    BlockedError,
    ConfigurationError,
    DeliveryError,
    NotInstrumentedError,
    RunawayError,
    TaskpilotError,
    TokenLimitError,
)
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.health import Health
from taskpilot_instrument.limits import TokenLimit
from taskpilot_instrument.pricing import MODEL_PRICING, PriceBook, calculate_cost
from taskpilot_instrument.runaway import Runaway
from taskpilot_instrument.runtime import Instrumentation, golden_signals, health, instrument, uninstrument
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
    "BlockedError",
    "ConfigurationError",
    "DeliveryError",
    "GoldenSignals",
    "Health",
    "Instrumentation",
    "MetricsBackend",
    "NotInstrumentedError",
    "PriceBook",
    "Runaway",
    "RunawayError",
    "Settings",
    "TaskpilotError",
    "TaskpilotFields",
    "TokenLimit",
    "TokenLimitError",
    "TokenUsage",
    "WorkflowRun",
    "__version__",
    "add_taskpilot_fields",
    "calculate_cost",
    "golden_signals",
    "health",
    "instrument",
    "observed_agent",
    "observed_tool",
    "observed_workflow",
    "track_llm_metrics",
    "uninstrument",
    "workflow",
]
