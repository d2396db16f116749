"""Say how to observe: every setting, where it comes from, and what it may be.

An argument comes before a ``TASKPILOT_*`` variable, that before an ``OTEL_*`` variable, that before
the default. An empty variable counts as not set. A wrong value is a :class:`ConfigurationError` that
says what would be right. A ``TASKPILOT_*`` variable that is no setting may be the application's own:
where its name comes close to a setting's, a warning says which.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, get_args

from taskpilot_instrument import _forms
from taskpilot_instrument._forms import complaint, did_you_mean
from taskpilot_instrument._setting import SILENT, SPEC, SettingDoc, Source, Spec, setting
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import SERVICE_NAME
from taskpilot_instrument.typing import Clock

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

_log = logging.getLogger("taskpilot_instrument")
_PREFIX: Final = "TASKPILOT_"

Framework = Literal["agent_framework", "openai_agents", "langchain", "pydantic_ai"]
CaptureContent = Literal["no_content", "span_only", "event_only", "span_and_event"]
LedgerUnavailable = Literal["allow", "deny"]
LogProfile = Literal["flat", "ecs"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
OtlpProtocol = Literal["http/protobuf", "grpc"]


class SupportsWrite(Protocol):
    """A stream that log lines can be written to."""

    def write(self, text: str, /) -> object:
        """Write one line."""


#: ``stderr``, ``stdout``, ``off``, the path of a file, an open stream, or a stdlib logger. A path is held as a Path.
LogTarget = str | Path | SupportsWrite | logging.Logger


def _service_name_in(pairs: str) -> object:
    return _forms.read_pairs(pairs).get("service.name") or SILENT


def _none_if_exporter_is_none(exporter: str) -> object:
    return None if exporter.casefold() == "none" else SILENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold every setting; what is not given comes from the environment, then from the defaults.

    :raises ConfigurationError: for a value that is not valid, with those that are.
    """

    enabled: bool = setting(
        _forms.boolean(),
        "Observe at all; off, `instrument()` patches, records and serves nothing.",
        "TASKPILOT_ENABLED",
        default=True,
    )
    service_name: str = setting(
        _forms.text(),
        "Name of the service on spans and log lines.",
        "TASKPILOT_SERVICE_NAME",
        "OTEL_SERVICE_NAME",
        Source("OTEL_RESOURCE_ATTRIBUTES", _forms.attributes(), _service_name_in),
        default=SERVICE_NAME,
    )
    resource_attributes: Mapping[str, str | bool | int | float] = setting(
        _forms.attributes(),
        "Further attributes of the resource that spans belong to.",
        "TASKPILOT_RESOURCE_ATTRIBUTES",
        "OTEL_RESOURCE_ATTRIBUTES",
        default=MappingProxyType({}),
    )
    capture_content: CaptureContent | bool = setting(
        _forms.choice(get_args(CaptureContent), when_true="span_and_event", when_false="no_content"),
        "Where the text of messages, arguments and results is written; true means spans and events.",
        "TASKPILOT_CAPTURE_CONTENT",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        default="no_content",
    )
    content_limit: int = setting(
        _forms.whole(1, 1_000_000),
        "Characters of captured content kept per attribute or field; what is cut says so.",
        "TASKPILOT_CONTENT_LIMIT",
        default=4096,
    )
    redact: Callable[[str], str] | None = setting(
        _forms.optional(_forms.thing("callable", "a function from text to text", "__call__")),
        "Function that content passes through before it is written anywhere, besides the built-in redaction.",
        default=None,
    )
    logs: LogTarget = setting(
        _forms.log_target(("stderr", "stdout", "off")),
        "Where JSON log lines go.",
        "TASKPILOT_LOGS",
        default="stderr",
    )
    log_profile: LogProfile = setting(
        _forms.choice(get_args(LogProfile)),
        "Shape of a log line: flat names, or those of the Elastic Common Schema.",
        "TASKPILOT_LOG_PROFILE",
        default="flat",
    )
    log_level: LogLevel = setting(
        _forms.choice(get_args(LogLevel)),
        "Least severe level that is written.",
        "TASKPILOT_LOG_LEVEL",
        default="INFO",
    )
    metrics_port: int | None = setting(
        _forms.optional(_forms.whole(0, 65535)),
        "Port on which `/metrics` is served; 0 picks a free one, None serves nothing.",
        "TASKPILOT_METRICS_PORT",
        default=None,
    )
    metrics_address: str = setting(
        _forms.text(),
        "Address on which `/metrics` is served.",
        "TASKPILOT_METRICS_ADDRESS",
        default="127.0.0.1",
    )
    registry: "CollectorRegistry | None" = setting(
        _forms.optional(
            _forms.thing("CollectorRegistry", "a prometheus_client.CollectorRegistry", "register", "collect")
        ),
        "Registry that the metric families are on; None means prometheus_client's own.",
        default=None,
    )
    aliases: bool = setting(
        _forms.boolean(),
        "Serve the label-free alias names beside the canonical families.",
        "TASKPILOT_ALIASES",
        default=True,
    )
    label_cap: int = setting(
        _forms.whole(1, 10_000),
        "Distinct values that one label may take; further ones are counted as `other`.",
        "TASKPILOT_LABEL_CAP",
        default=200,
    )
    otlp_endpoint: str | None = setting(
        _forms.optional(_forms.url()),
        "URL that spans are sent to; None, or OTEL_TRACES_EXPORTER=none, sends none. Headers, timeouts, "
        "compression and certificates come from OTEL_EXPORTER_OTLP_*.",
        "TASKPILOT_OTLP_ENDPOINT",
        Source("OTEL_TRACES_EXPORTER", _forms.text(), _none_if_exporter_is_none),
        Source("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", _forms.url(), _forms.otlp_exact),
        Source("OTEL_EXPORTER_OTLP_ENDPOINT", _forms.url(), _forms.otlp_base),
        default=None,
    )
    otlp_protocol: OtlpProtocol = setting(
        _forms.choice(get_args(OtlpProtocol)),
        "How spans travel to the OTLP receiver.",
        "TASKPILOT_OTLP_PROTOCOL",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        default="http/protobuf",
    )
    sdk_disabled: bool = setting(
        _forms.boolean(),
        "Make no spans and no OpenTelemetry metrics; Prometheus metrics, logs and golden signals go on.",
        "TASKPILOT_SDK_DISABLED",
        "OTEL_SDK_DISABLED",
        default=False,
    )
    patch_openai: bool = setting(
        _forms.boolean(),
        "Observe calls made through the openai client, where it is installed.",
        "TASKPILOT_PATCH_OPENAI",
        default=True,
    )
    observe_sockets: bool = setting(
        _forms.boolean(),
        "Observe the WebSockets of the openai client, too: realtime sessions, and those of the Responses API.",
        "TASKPILOT_OBSERVE_SOCKETS",
        default=False,
    )
    frameworks: tuple[Framework, ...] = setting(
        _forms.choices(get_args(Framework)),
        "Agent frameworks whose workflows, agents and tools are observed.",
        "TASKPILOT_FRAMEWORKS",
        default=(),
    )
    include_usage: bool = setting(
        _forms.boolean(),
        "Ask for the usage of streamed chat completions and hide the chunk that brings it.",
        "TASKPILOT_INCLUDE_USAGE",
        default=False,
    )
    include_usage_except: tuple[str, ...] = setting(
        _forms.words(),
        "Hosts that are never asked for it, because they refuse requests which do.",
        "TASKPILOT_INCLUDE_USAGE_EXCEPT",
        default=(),
    )
    propagate_threads: bool = setting(
        _forms.boolean(),
        "Carry the current run into `threading.Thread` and thread pools; tasks and `asyncio.to_thread` carry it "
        "anyway.",
        "TASKPILOT_PROPAGATE_THREADS",
        default=False,
    )
    pricing: Mapping[str, Mapping[str, Any]] | None = setting(
        _forms.optional(_forms.mapping('a mapping such as {"my-model": {"input": 2.50, "output": 10.00}}')),
        "Prices of your own, USD for a million tokens, asked before the built-in ones.",
        default=None,
    )
    deployments: Mapping[str, str] = setting(
        _forms.aliases(
            'deployments with the models that they run, such as {"my-gpt4o": "gpt-4o"} (in text: my-gpt4o=gpt-4o)'
        ),
        "Which model a deployment runs, where the response does not say so: its price is taken.",
        "TASKPILOT_DEPLOYMENTS",
        default=MappingProxyType({}),
    )
    tracer_provider: "TracerProvider | None" = setting(
        _forms.optional(_forms.thing("TracerProvider", "an OpenTelemetry TracerProvider", "get_tracer")),
        "Provider of the tracer; None takes the application's global one, or builds one.",
        default=None,
    )
    meter_provider: "MeterProvider | None" = setting(
        _forms.optional(_forms.thing("MeterProvider", "an OpenTelemetry MeterProvider", "get_meter")),
        "Provider of the meter for the GenAI metrics of OpenTelemetry; None takes the application's global one, "
        "if it has set one.",
        default=None,
    )
    budgets: object = setting(
        _forms.optional(
            _forms.listed(
                "list of Budget | path", "a list of Budget(…), or the path of a TOML file with [[budget]] tables"
            )
        ),
        "What may be spent: a list of `Budget(…)`, or the path of a TOML file with `[[budget]]` tables.",
        "TASKPILOT_BUDGETS",
        default=None,
    )
    ledger: object = setting(
        _forms.optional(_forms.ledger()),
        "Where budgets and feedback are kept: the path of a SQLite file, `redis://…`, `memory`, or a Ledger; None "
        "opens a SQLite file in the user's state folder once something needs it.",
        "TASKPILOT_LEDGER",
        default=None,
    )
    ledger_unavailable: LedgerUnavailable = setting(
        _forms.choice(get_args(LedgerUnavailable)),
        'What happens to a call that a budget with `on_exceed="block"` speaks of while the ledger cannot be reached.',
        "TASKPILOT_LEDGER_UNAVAILABLE",
        default="allow",
    )
    feedback_key: str | None = setting(
        _forms.optional(_forms.secret(16)),
        "Secret that feedback tokens are signed with, of 16 characters or more; the same in all processes that "
        "make and take them.",
        "TASKPILOT_FEEDBACK_KEY",
        default=None,
    )
    policies: tuple[Any, ...] = setting(
        _forms.listed("list of Policy", "a list of policies or functions"),
        "Policies that are asked about agent input, tool calls and agent output.",
        default=(),
    )
    guardrails: tuple[Any, ...] = setting(
        _forms.listed("list of Guardrail", "a list of guardrails"),
        "Guardrails that check the input and output of agents.",
        default=(),
    )
    token_limits: object = setting(
        _forms.optional(_forms.listed("list of TokenLimit", "a list of TokenLimit(…)")),
        "Limits of tokens for each call, run, or agent and minute.",
        default=None,
    )
    runaway: object = setting(
        _forms.optional(_forms.listed("Runaway", "a Runaway(…)")),
        "When a run goes in circles, and what happens then.",
        default=None,
    )
    alerts: tuple[Any, ...] = setting(
        _forms.listed("list of Alert", "a list of Alert(…)"),
        "Callbacks with a threshold and a cool-down, for those without an Alertmanager.",
        default=(),
    )
    source: str | None = setting(
        _forms.optional(_forms.prometheus_address()),
        "Prometheus that the page takes its golden signals from, those of all processes, such as "
        "`http://prometheus:9090?job=taskpilot`; None shows this process's.",
        "TASKPILOT_SOURCE",
        default=None,
    )
    source_token: str | None = setting(
        _forms.optional(_forms.bearer_token()),
        "Bearer token that this Prometheus, or the one of `golden_signals(source=…)`, asks for.",
        "TASKPILOT_SOURCE_TOKEN",
        default=None,
    )
    source_timeout_s: int = setting(
        _forms.whole(1, 600),
        "Seconds that its answer may take.",
        "TASKPILOT_SOURCE_TIMEOUT_S",
        default=30,
    )
    clock: Clock | None = setting(
        _forms.optional(_forms.thing("Clock", "a taskpilot_instrument.typing.Clock", "monotonic_ns", "epoch_ns")),
        "Where time comes from; for tests.",
        default=None,
    )

    def __post_init__(self) -> None:
        for name, spec in _SPECS.items():
            value = getattr(self, name)
            try:
                checked = spec.form.accept(value)
            except ValueError:
                raise ConfigurationError(complaint(name, value, spec.form)) from None
            object.__setattr__(self, name, checked)
        if self.otlp_endpoint and "://" not in self.otlp_endpoint and self.otlp_protocol != "grpc":
            variables = [source.variable for source in _SPECS["otlp_endpoint"].sources]
            said = next((each for each in variables if os.environ.get(each) == self.otlp_endpoint), "otlp_endpoint")
            raise ConfigurationError(
                f"{said}={self.otlp_endpoint!r}: over {self.otlp_protocol} expected a URL with its scheme, "
                f"such as http://{self.otlp_endpoint}"
            )

    @property
    def content_on_spans(self) -> bool:
        """True where spans carry message content."""
        return self.capture_content in {"span_only", "span_and_event"}

    @property
    def content_on_events(self) -> bool:
        """True where events and log lines carry message content."""
        return self.capture_content in {"event_only", "span_and_event"}

    @classmethod
    def resolve(
        cls,
        arguments: Mapping[str, object],
        environ: Mapping[str, str] = os.environ,
        *,
        settings: Self | None = None,
    ) -> Self:
        """Resolve every setting: arguments, then ``TASKPILOT_*``, then ``OTEL_*``, then defaults.

        :param arguments: settings by name; one that is None counts as not given.
        :param environ: the environment variables.
        :param settings: settings that the arguments build on, in place of the environment.
        :raises ConfigurationError: for an unknown name or a value that is not valid.
        """
        unknown = [name for name in arguments if name not in _SPECS]
        if unknown:
            said = ", ".join(f"{name!r}{did_you_mean(name, _SPECS)}" for name in unknown)
            raise ConfigurationError(f"unknown setting {said}. Valid settings: {', '.join(sorted(_SPECS))}")
        _warn_of_misspelt_variables(environ)
        values: dict[str, Any] = {}
        for name, spec in _SPECS.items():
            if arguments.get(name) is not None:
                values[name] = arguments[name]
            elif settings is not None:
                values[name] = getattr(settings, name)
            else:
                values[name] = spec.from_environment(environ)
        return cls(**values)

    @classmethod
    def table(cls) -> tuple[SettingDoc, ...]:
        """Describe every setting, one row each, for documentation and ``--help``."""
        return tuple(
            SettingDoc(
                name,
                tuple(source.variable for source in spec.sources),
                spec.form.label,
                _shown(spec.default),
                spec.doc,
            )
            for name, spec in _SPECS.items()
        )


_SPECS: Final[dict[str, Spec]] = {each.name: each.metadata[SPEC] for each in fields(Settings)}


def _shown(default: object) -> str:
    return str(dict(default)) if isinstance(default, Mapping) else str(default)


def _warn_of_misspelt_variables(environ: Mapping[str, str]) -> None:
    """Warn of names that come close to a setting's; what comes close to none is the application's own."""
    known = {source.variable for spec in _SPECS.values() for source in spec.sources}
    unknown = sorted(name for name in environ if name.startswith(_PREFIX) and name not in known)
    suggested = [(name, did_you_mean(name, known, prefix=_PREFIX)) for name in unknown]
    said = ", ".join(name + suggestion for name, suggestion in suggested if suggestion)
    if said:
        _log.warning("taskpilot_instrument: no setting has the environment variable %s", said)
