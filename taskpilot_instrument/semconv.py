"""Name every span, tag, metric, label, log event and bucket once.

Other systems search for these strings: Jaeger for tags, Prometheus for families, Kibana for fields.
The GenAI attributes follow the OpenTelemetry GenAI conventions v0.1.0. They are pinned here because
the constants of ``opentelemetry.semconv._incubating`` are frozen at an older version.
"""

from enum import StrEnum
from typing import Final, TypeVar

_Names = TypeVar("_Names", bound=type[StrEnum])


def _plain(enum: _Names) -> _Names:
    """Make ``Kind.LLM`` a plain class attribute, as Python 3.12 does: 3.11 runs a descriptor for each look."""
    for name, member in enum.__members__.items():
        type.__setattr__(enum, name, member)
    return enum


@_plain
class Kind(StrEnum):
    """Say which of the four operations a record speaks of."""

    __hash__ = str.__hash__  # the one of Enum is written in Python, and sinks look kinds up on the hot path

    WORKFLOW = "workflow"
    AGENT = "agent"
    LLM = "llm"
    TOOL = "tool"


@_plain
class Outcome(StrEnum):
    """Say how an operation ended.

    ``ABANDONED`` is for streams only: nobody read to the end and nobody closed it.
    """

    __hash__ = str.__hash__

    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    ABANDONED = "abandoned"


#: How a run may end: only a model call is abandoned.
RUN_OUTCOMES: Final = (str(Outcome.SUCCESS), str(Outcome.ERROR), str(Outcome.CANCELLED), str(Outcome.BLOCKED))


class TokenKind(StrEnum):
    """Value of the ``kind`` label of the token family."""

    INPUT = "input"
    OUTPUT = "output"
    CACHED_INPUT = "cached_input"
    CACHE_WRITE = "cache_write"
    REASONING = "reasoning"


#: Label value where an operation has no agent, model, workflow … around it.
NONE: Final = "none"
#: Label value that stands for all values beyond a label's cap.
OTHER: Final = "other"
SERVICE_NAME: Final = "taskpilot"
SCOPE_NAME: Final = "taskpilot_instrument"

# --- span names --------------------------------------------------------------------------------
SPAN_WORKFLOW: Final = "workflow.run"
SPAN_AGENT_SUFFIX: Final = ".execute"
SPAN_FEEDBACK: Final = "user.feedback"

# --- tags, as typed into Jaeger's search box ----------------------------------------------------
WORKFLOW: Final = "workflow"
AGENT: Final = "agent"
TOOL: Final = "tool"
MODEL: Final = "model"
REQUEST_ID: Final = "request_id"
INPUT_TOKENS: Final = "input_tokens"
OUTPUT_TOKENS: Final = "output_tokens"
CACHED_TOKENS: Final = "cached_tokens"
REASONING_TOKENS: Final = "reasoning_tokens"
COST_USD: Final = "cost_usd"
COST_SOURCE: Final = "cost_source"
#: Values of ``cost_source`` that say how far to trust a cost: there is none, it is a lower bound, it is a guess.
COST_UNKNOWN: Final = "unknown"
COST_PARTIAL: Final = "partial"
COST_DEFAULT: Final = "default"
LATENCY_MS: Final = "latency_ms"
TIME_TO_FIRST_CHUNK_MS: Final = "time_to_first_chunk_ms"
TOKENS_PER_SECOND: Final = "tokens_per_second"
OUTCOME: Final = "outcome"
EXPERIMENT: Final = "experiment"
VARIANT: Final = "variant"

# --- OpenTelemetry attributes -------------------------------------------------------------------
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
RESOURCE_SERVICE_NAME: Final = "service.name"
SESSION_ID: Final = "session.id"
USER_ID: Final = "user.id"
HTTP_RESEND_COUNT: Final = "http.request.resend_count"
HTTP_RESPONSE_REQUEST_ID: Final = "http.response.header.x-request-id"
#: How much a provider still takes, as the headers of its response say.
HTTP_RESPONSE_RATE_LIMITS: Final = (
    "http.response.header.x-ratelimit-limit-requests",
    "http.response.header.x-ratelimit-limit-tokens",
    "http.response.header.x-ratelimit-remaining-requests",
    "http.response.header.x-ratelimit-remaining-tokens",
)

#: What a call is billed for beside its own tokens, such as hosted tools; the conventions have nothing for it.
EVENT_OTHER_USAGE: Final = "openai.other_usage"

EVENT_EXCEPTION: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"

GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_WORKFLOW_NAME: Final = "gen_ai.workflow.name"
GEN_AI_AGENT_NAME: Final = "gen_ai.agent.name"
GEN_AI_TOOL_NAME: Final = "gen_ai.tool.name"
GEN_AI_TOOL_TYPE: Final = "gen_ai.tool.type"
GEN_AI_TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
GEN_AI_TOOL_DESCRIPTION: Final = "gen_ai.tool.description"
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
GEN_AI_OUTPUT_TYPE: Final = "gen_ai.output.type"
GEN_AI_PROMPT_NAME: Final = "gen_ai.prompt.name"
GEN_AI_PROMPT_VERSION: Final = "gen_ai.prompt.version"
#: JSON of the offered tools' types and names, the only members that the conventions require.
GEN_AI_TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
GEN_AI_EMBEDDINGS_DIMENSION_COUNT: Final = "gen_ai.embeddings.dimension.count"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K: Final = "gen_ai.request.top_k"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
GEN_AI_REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
GEN_AI_REQUEST_ENCODING_FORMATS: Final = "gen_ai.request.encoding_formats"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_REQUEST_REASONING_LEVEL: Final = "gen_ai.request.reasoning.level"
GEN_AI_REQUEST_PREVIOUS_RESPONSE_ID: Final = "gen_ai.request.previous_response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_CACHE_WRITE: Final = "gen_ai.usage.cache_write.input_tokens"
GEN_AI_USAGE_REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
OPENAI_REQUEST_SERVICE_TIER: Final = "openai.request.service_tier"
OPENAI_RESPONSE_SERVICE_TIER: Final = "openai.response.service_tier"

# Message content: written only where it was asked for.
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
GEN_AI_SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
GEN_AI_TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
GEN_AI_TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
EVENT_INFERENCE_DETAILS: Final = "gen_ai.client.inference.operation.details"

# What a user, or a judge, thought of a result.
EVENT_EVALUATION: Final = "gen_ai.evaluation.result"
GEN_AI_EVALUATION_NAME: Final = "gen_ai.evaluation.name"
GEN_AI_EVALUATION_SCORE_VALUE: Final = "gen_ai.evaluation.score.value"
GEN_AI_EVALUATION_SCORE_LABEL: Final = "gen_ai.evaluation.score.label"
GEN_AI_EVALUATION_EXPLANATION: Final = "gen_ai.evaluation.explanation"

OPERATION_WORKFLOW: Final = "invoke_workflow"
OPERATION_AGENT: Final = "invoke_agent"
OPERATION_TOOL: Final = "execute_tool"
OPERATION_CHAT: Final = "chat"
OPERATION_COMPLETION: Final = "text_completion"
OPERATION_EMBEDDINGS: Final = "embeddings"
#: The conventions have no name of their own for images: generate_content is their multimodal one.
OPERATION_IMAGE: Final = "generate_content"
OPERATION_VIDEO: Final = "generate_content"
# Nor for what follows.
OPERATION_TRANSCRIPTION: Final = "transcription"
OPERATION_TRANSLATION: Final = "translation"
OPERATION_SPEECH: Final = "speech"
OPERATION_MODERATION: Final = "moderation"
OPERATION_BATCH: Final = "batch"
OPERATION_DECISION: Final = "decision"
OPERATION_EVALUATION: Final = "evaluation"
OPERATION_GRADING: Final = "grading"
OPERATION_TRAINING: Final = "fine_tuning"
OPERATION_CONTAINER: Final = "create_container"

# --- metric families ----------------------------------------------------------------------------
M_WORKFLOW_RUNS: Final = "taskpilot_workflow_runs_total"
M_WORKFLOW_DURATION: Final = "taskpilot_workflow_duration_seconds"
M_AGENT_RUNS: Final = "taskpilot_agent_runs_total"
M_AGENT_DURATION: Final = "taskpilot_agent_duration_seconds"
M_TOOL_CALLS: Final = "taskpilot_tool_calls_total"
M_TOOL_DURATION: Final = "taskpilot_tool_duration_seconds"
M_LLM_CALLS: Final = "taskpilot_llm_calls_total"
M_LLM_DURATION: Final = "taskpilot_llm_duration_seconds"
M_LLM_TIME_TO_FIRST_CHUNK: Final = "taskpilot_llm_time_to_first_chunk_seconds"
M_LLM_TOKENS: Final = "taskpilot_llm_tokens_total"
M_LLM_COST: Final = "taskpilot_llm_cost_usd_total"
M_LLM_UNPRICED: Final = "taskpilot_llm_unpriced_calls_total"
M_LLM_RETRIES: Final = "taskpilot_llm_retries_total"
M_LLM_WASTED_TOKENS: Final = "taskpilot_llm_wasted_tokens_total"
M_LLM_WASTED_COST: Final = "taskpilot_llm_wasted_cost_usd_total"
M_TOKEN_LIMIT_HITS: Final = "taskpilot_llm_token_limit_hits_total"
M_POLICY_VIOLATIONS: Final = "taskpilot_policy_violations_total"
M_GUARDRAIL_BLOCKS: Final = "taskpilot_guardrail_blocks_total"
M_FEEDBACK: Final = "taskpilot_feedback_total"
M_INSTRUMENT_ERRORS: Final = "taskpilot_instrument_errors_total"
M_LABEL_OVERFLOW: Final = "taskpilot_instrument_label_overflow_total"
M_BUDGET_SPENT: Final = "taskpilot_budget_spent_usd"
M_BUDGET_LIMIT: Final = "taskpilot_budget_limit_usd"
M_BUDGET_BLOCKED: Final = "taskpilot_budget_blocked_calls_total"
M_EXPERIMENT_RUNS: Final = "taskpilot_experiment_runs_total"
M_EXPERIMENT_COST: Final = "taskpilot_experiment_cost_usd_total"
M_EXPERIMENT_DURATION: Final = "taskpilot_experiment_duration_seconds"

#: Labels of each family, in the order in which children are bound.
METRIC_LABELS: Final[dict[str, tuple[str, ...]]] = {
    M_WORKFLOW_RUNS: ("workflow", "outcome"),
    M_WORKFLOW_DURATION: ("workflow",),
    M_AGENT_RUNS: ("agent", "outcome"),
    M_AGENT_DURATION: ("agent",),
    M_TOOL_CALLS: ("tool", "agent", "outcome"),
    M_TOOL_DURATION: ("tool", "agent"),
    M_LLM_CALLS: ("agent", "model", "provider", "outcome", "error_type"),
    M_LLM_DURATION: ("model", "provider"),
    M_LLM_TIME_TO_FIRST_CHUNK: ("model", "provider"),
    M_LLM_TOKENS: ("agent", "model", "kind"),
    M_LLM_COST: ("agent", "model"),
    M_LLM_UNPRICED: ("model",),
    M_LLM_RETRIES: ("agent", "model"),
    M_LLM_WASTED_TOKENS: ("agent", "model", "outcome"),
    M_LLM_WASTED_COST: ("agent", "model", "outcome"),
    M_TOKEN_LIMIT_HITS: ("model", "limit"),
    M_POLICY_VIOLATIONS: ("agent", "policy"),
    M_GUARDRAIL_BLOCKS: ("agent", "guardrail", "direction"),
    M_FEEDBACK: ("verdict", "agent"),
    M_INSTRUMENT_ERRORS: ("where",),
    M_LABEL_OVERFLOW: ("label",),
    M_BUDGET_SPENT: ("budget", "window"),
    M_BUDGET_LIMIT: ("budget", "window"),
    M_BUDGET_BLOCKED: ("budget", "window"),
    M_EXPERIMENT_RUNS: ("experiment", "variant", "outcome"),
    M_EXPERIMENT_COST: ("experiment", "variant"),
    M_EXPERIMENT_DURATION: ("experiment", "variant"),
}

# Labels that are no tag, and the words that stand in them.
L_KIND: Final = "kind"
L_LABEL: Final = "label"
L_DIRECTION: Final = "direction"
L_VERDICT: Final = "verdict"
L_BUDGET: Final = "budget"
L_WINDOW: Final = "window"
L_LIMIT: Final = "limit"
L_GUARDRAIL: Final = "guardrail"
DIRECTION_INPUT: Final = "input"
DIRECTION_OUTPUT: Final = "output"
VERDICT_CORRECT: Final = "correct"
VERDICT_INCORRECT: Final = "incorrect"
LIMIT_FINISH_LENGTH: Final = "finish_length"
LIMIT_CONTEXT_WINDOW: Final = "context_window"
LIMIT_CONFIGURED: Final = "configured"

#: Bucket bounds in seconds: the thresholds 2 s and 5 s of the golden signals are bounds of their own.
DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
    900.0, 3600.0,
)  # fmt: skip

# OpenTelemetry metrics and their bounds, as the GenAI conventions give them.
OTEL_OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
OTEL_TOKEN_USAGE: Final = "gen_ai.client.token.usage"
OTEL_TOKEN_TYPE: Final = "gen_ai.token.type"
OTEL_DURATION_BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
OTEL_TOKEN_BUCKETS: Final = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip

#: What the conventions v0.1.0 have in place of ``gen_ai.client.token.usage``: counters of what was spent …
OTEL_USAGE_INPUT: Final = "gen_ai.client.inference.usage.input_tokens"
OTEL_USAGE_OUTPUT: Final = "gen_ai.client.inference.usage.output_tokens"
OTEL_USAGE_CACHE_READ: Final = "gen_ai.client.inference.usage.cache_read.input_tokens"
OTEL_USAGE_CACHE_WRITE: Final = "gen_ai.client.inference.usage.cache_write.input_tokens"
OTEL_USAGE_REASONING: Final = "gen_ai.client.inference.usage.reasoning.output_tokens"
#: … and histograms of each operation.
OTEL_OPERATION_INPUT: Final = "gen_ai.client.inference.operation.input_tokens"
OTEL_OPERATION_OUTPUT: Final = "gen_ai.client.inference.operation.output_tokens"
OTEL_TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
OTEL_TOKEN_MODALITY: Final = "gen_ai.token.modality"
MODALITY_TEXT: Final = "text"
MODALITY_AUDIO: Final = "audio"
MODALITY_IMAGE: Final = "image"
MODALITY_UNKNOWN: Final = "unknown"

# --- dotted names of the Python API -------------------------------------------------------------
N_WORKFLOW_RUNS: Final = "workflow.runs"
N_WORKFLOW_SUCCESS: Final = "workflow.success"
N_WORKFLOW_LATENCY: Final = "workflow.latency_ms"
N_AGENT_LATENCY: Final = "agent.{agent}.latency_ms"
N_AGENT_POLICY_VIOLATIONS: Final = "agent.{agent}.policy.violations"
N_AGENT_GUARDRAILS_BLOCKED: Final = "agent.{agent}.guardrails.blocked"
N_AGENT_GUARDRAILS_OUTPUT_BLOCKED: Final = "agent.{agent}.guardrails.output_blocked"
N_COST_TOTAL: Final = "llm.cost.total"
N_COST_AGENT: Final = "llm.cost.agent.{agent}"
N_COST_MODEL: Final = "llm.cost.model.{model}"
N_TOKENS_INPUT: Final = "llm.tokens.input.{model}"
N_TOKENS_OUTPUT: Final = "llm.tokens.output.{model}"
N_TOKENS_TOTAL: Final = "llm.tokens.total.{model}"
N_TOKENS_INPUT_TOTAL: Final = "llm.tokens.input.total"
N_TOKENS_OUTPUT_TOTAL: Final = "llm.tokens.output.total"
N_TOKENS_TOTAL_ALL: Final = "llm.tokens.total.all"
N_POLICY_VIOLATIONS_TOTAL: Final = "policy.violations.total"
N_CONFIRMED_CORRECT: Final = "llm.quality.user_confirmed_correct"
N_CONFIRMED_INCORRECT: Final = "llm.quality.user_confirmed_incorrect"

# --- golden signals: keys of the five-key dictionary ---------------------------------------------
G_SUCCESS_RATE: Final = "success_rate"
G_P95_LATENCY_MS: Final = "p95_latency_ms"
G_COST_PER_TASK: Final = "cost_per_successful_task_usd"
G_USER_CORRECTNESS: Final = "user_confirmed_correctness_percent"
G_VIOLATION_RATE: Final = "policy_violation_rate_percent"

# --- log events ---------------------------------------------------------------------------------
CATEGORY_AUDIT: Final = "audit"
CATEGORY_ERROR: Final = "error"
CATEGORY_DECISION: Final = "decision"

E_AGENT_STARTED: Final = "agent.started"
E_AGENT_FINISHED: Final = "agent.finished"
E_TOOL_CALLED: Final = "tool.called"
E_LLM_CALLED: Final = "llm.called"
E_WORKFLOW_FINISHED: Final = "workflow.finished"
E_LLM_FAILED: Final = "llm.failed"
E_TOOL_FAILED: Final = "tool.failed"
E_AGENT_FAILED: Final = "agent.failed"
E_TOKEN_LIMIT_EXCEEDED: Final = "token_limit.exceeded"
E_COST_THRESHOLD_EXCEEDED: Final = "cost.threshold_exceeded"
E_POLICY_DECIDED: Final = "policy.decided"
E_GUARDRAIL_BLOCKED: Final = "guardrail.blocked"
E_TOOL_AUTHORIZED: Final = "tool.authorized"
E_TOOL_DENIED: Final = "tool.denied"
E_BUDGET_BLOCKED: Final = "budget.blocked"
E_FEEDBACK_RECORDED: Final = "feedback.recorded"

#: Fields of a log line, at top level, in the order in which they are written.
LOG_FIELDS_ALWAYS: Final = (
    "timestamp", "level", "message", "event_name", "category", "request_id", "trace_id", "span_id", "service_name",
)  # fmt: skip
LOG_FIELDS_OPTIONAL: Final = (
    "workflow", "agent", "tool", "model", "input_tokens", "output_tokens", "cost_usd", "cost_source", "latency_ms",
    "outcome", "input_length", "output_length", "error_type", "error_message", "policy", "decision", "reason",
    "experiment", "variant",
)  # fmt: skip

# The fields that are no tag as well.
F_TIMESTAMP: Final = "timestamp"
F_LEVEL: Final = "level"
F_MESSAGE: Final = "message"
F_EVENT_NAME: Final = "event_name"
F_CATEGORY: Final = "category"
F_TRACE_ID: Final = "trace_id"
F_SPAN_ID: Final = "span_id"
F_SERVICE_NAME: Final = "service_name"
F_INPUT_LENGTH: Final = "input_length"
F_OUTPUT_LENGTH: Final = "output_length"
F_ERROR_TYPE: Final = "error_type"
F_ERROR_MESSAGE: Final = "error_message"
F_REASON: Final = "reason"
F_POLICY: Final = "policy"
F_DECISION: Final = "decision"

#: Finish reasons with which the providers say that the answer was cut off at a token limit.
TOKEN_LIMIT_FINISH_REASONS: Final = frozenset({"length", "max_tokens", "max_output_tokens"})

# --- Elastic Common Schema, for the log profile ``ecs`` -----------------------------------------
#: The first version that is sure to have the ``gen_ai`` fields.
ECS_VERSION: Final = "9.2.0"
ECS_LEVEL: Final = "log.level"
ECS_EVENT_KIND: Final = "event.kind"
ECS_EVENT_OUTCOME: Final = "event.outcome"
ECS_EVENT_DURATION: Final = "event.duration"
ECS_VERSION_FIELD: Final = "ecs.version"

#: What each field of the flat profile is called there; what ECS has no place for goes under ``labels`` (words) and
#: ``taskpilot`` (numbers). ``event.category`` stays away: none of its allowed values fits an agent.
ECS_FIELDS: Final[dict[str, str]] = {
    "timestamp": "@timestamp", "level": ECS_LEVEL, "message": "message", "event_name": "event.action",
    "category": "labels.category", "request_id": "labels.request_id", "trace_id": "trace.id", "span_id": "span.id",
    "service_name": "service.name", "workflow": "labels.workflow", "agent": "gen_ai.agent.name",
    "tool": "gen_ai.tool.name", "model": "gen_ai.request.model", "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens", "cost_usd": "taskpilot.cost_usd",
    "cost_source": "taskpilot.cost_source",
    "latency_ms": "taskpilot.latency_ms", "outcome": "labels.outcome", "input_length": "taskpilot.input_length",
    "output_length": "taskpilot.output_length", "error_type": "error.type", "error_message": "error.message",
    "policy": "labels.policy", "decision": "labels.decision", "reason": "event.reason",
    "experiment": "labels.experiment", "variant": "labels.variant",
}  # fmt: skip
#: ``event.outcome`` knows three values.
ECS_OUTCOMES: Final[dict[str, str]] = {
    Outcome.SUCCESS: "success", Outcome.ERROR: "failure", Outcome.BLOCKED: "failure",
    Outcome.CANCELLED: "unknown", Outcome.ABANDONED: "unknown",
}  # fmt: skip
