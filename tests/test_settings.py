"""Settings: where each comes from, what it may be, and what is said when it is wrong."""

import ast
import io
import logging
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.typing import Clock


def resolve(environ: Mapping[str, str] | None = None, /, **arguments: object) -> Settings:
    """Resolve settings in an environment of the test's own."""
    return Settings.resolve(arguments, environ or {})


def complaint(environ: Mapping[str, str] | None = None, /, **arguments: object) -> str:
    """Return what is said against these settings."""
    with pytest.raises(ConfigurationError) as raised:
        resolve(environ, **arguments)
    return str(raised.value)


# --- where a setting comes from -----------------------------------------------------------------


def test_every_default_is_the_one_in_the_table() -> None:
    """Without arguments and environment each setting has the default that its row shows."""
    settings = resolve()

    shown = {row.name: row.default for row in Settings.table()}

    assert shown == {name: "{}" if name == "resource_attributes" else str(getattr(settings, name)) for name in shown}


def test_each_source_yields_to_the_one_above_it() -> None:
    """An argument beats TASKPILOT_*, that beats OTEL_*, that beats the default."""
    environ = {
        "TASKPILOT_SERVICE_NAME": "ours",
        "OTEL_SERVICE_NAME": "theirs",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=resource",
    }
    names = [resolve(environ, service_name="argument").service_name]
    while environ:
        names.append(resolve(environ).service_name)
        environ.pop(next(iter(environ)))
    names.append(resolve(environ).service_name)

    assert ["argument", "ours", "theirs", "resource", "taskpilot"] == names


def test_an_empty_variable_counts_as_not_set() -> None:
    """Blank text in a variable leaves the next source to speak."""
    environ = {"TASKPILOT_SERVICE_NAME": "  ", "OTEL_SERVICE_NAME": "theirs", "TASKPILOT_LABEL_CAP": ""}

    settings = resolve(environ)

    assert ("theirs", 200) == (settings.service_name, settings.label_cap)


def test_an_argument_of_none_counts_as_not_given() -> None:
    """Keyword arguments that default to None do not hide the environment."""
    assert resolve({"TASKPILOT_METRICS_PORT": "9464"}, metrics_port=None).metrics_port == 9464


def test_settings_made_directly_take_the_rest_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings(...) with one value still honours the variables that speak of the others."""
    monkeypatch.setenv("TASKPILOT_LABEL_CAP", "7")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")

    settings = Settings(service_name="mine")

    assert ("mine", 7) == (settings.service_name, settings.label_cap)


def test_arguments_build_on_given_settings() -> None:
    """A Settings object stands for all that it holds; arguments beside it come first."""
    base = resolve(label_cap=50, service_name="base")

    settings = Settings.resolve(
        {"service_name": "mine", "label_cap": None}, {"TASKPILOT_LABEL_CAP": "7"}, settings=base
    )

    assert ("mine", 50) == (settings.service_name, settings.label_cap)


def test_the_same_settings_are_equal() -> None:
    """Resolving twice gives equal settings, so that a repeated call can be recognised."""
    assert resolve({"OTEL_RESOURCE_ATTRIBUTES": "a=b"}) == resolve(resource_attributes={"a": "b"})


def test_settings_do_not_change() -> None:
    """Neither the object nor a mapping in it can be written to, and the caller's dict is not held."""
    attributes: dict[str, str | bool | int | float] = {"a": "b"}
    settings = resolve(resource_attributes=attributes)
    attributes["c"] = "d"

    with pytest.raises(FrozenInstanceError):
        settings.label_cap = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.resource_attributes["e"] = "f"  # type: ignore[index]
    assert {"a": "b"} == settings.resource_attributes


# --- what a setting may be ----------------------------------------------------------------------


@given(
    word=st.sampled_from([("1", True), ("true", True), ("yes", True), ("on", True)])
    | st.sampled_from([("0", False), ("false", False), ("no", False), ("off", False)]),
    upper=st.booleans(),
)
def test_a_bool_is_read_from_its_eight_words(word: tuple[str, bool], upper: bool) -> None:
    """Each of the eight words is a bool, in any case."""
    text, expected = word

    assert expected is resolve({"TASKPILOT_ALIASES": text.upper() if upper else text}).aliases


@given(st.integers())
def test_a_number_is_taken_within_its_bounds_only(number: int) -> None:
    """A whole number from 1 to 10000 is a label cap, from text and from Python alike; any other is refused."""
    if 1 <= number <= 10_000:
        assert number == resolve(label_cap=number).label_cap == resolve({"TASKPILOT_LABEL_CAP": str(number)}).label_cap
    else:
        assert f"label_cap={number}: expected a whole number from 1 to 10000" == complaint(label_cap=number)
        assert f"TASKPILOT_LABEL_CAP='{number}': expected a whole number from 1 to 10000" == complaint(
            {"TASKPILOT_LABEL_CAP": str(number)}
        )


@pytest.mark.parametrize(
    ("given_value", "expected", "on_spans", "on_events"),
    [
        ("NO_CONTENT", "no_content", False, False),
        ("span_only", "span_only", True, False),
        ("Event_Only", "event_only", False, True),
        ("span_and_event", "span_and_event", True, True),
        (True, "span_and_event", True, True),
        (False, "no_content", False, False),
    ],
)
def test_content_is_captured_where_asked(given_value: object, expected: str, on_spans: bool, on_events: bool) -> None:
    """Each mode, in any case, and a bool say where content goes, from Python and from both variables."""
    settings = resolve(capture_content=given_value)

    assert (expected, on_spans, on_events) == (
        settings.capture_content,
        settings.content_on_spans,
        settings.content_on_events,
    )
    for variable in ("TASKPILOT_CAPTURE_CONTENT", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"):
        assert settings == resolve({variable: str(given_value)})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http://collector:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector/otlp/"}, "http://collector/otlp/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector/own"}, "https://collector/own"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector"}, "https://collector/"),
        ({"TASKPILOT_OTLP_ENDPOINT": "http://collector:4318"}, "http://collector:4318/v1/traces"),
        ({"TASKPILOT_OTLP_ENDPOINT": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, "http://a/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://spans/"},
            "http://spans/",
        ),
    ],
)
def test_the_endpoint_is_the_url_that_spans_go_to(environ: dict[str, str], expected: str | None) -> None:
    """The signal's path is added as OpenTelemetry does it, and OTEL_TRACES_EXPORTER=none sends nothing."""
    assert expected == resolve(environ).otlp_endpoint


def test_an_endpoint_given_in_python_beats_the_variable_that_switches_exporters_off() -> None:
    """OTEL_TRACES_EXPORTER=none is an OTEL_* variable and yields to an argument."""
    settings = resolve({"OTEL_TRACES_EXPORTER": "none"}, otlp_endpoint="http://localhost:4318/v1/traces")

    assert settings.otlp_endpoint == "http://localhost:4318/v1/traces"


def test_an_endpoint_without_scheme_is_for_grpc_only() -> None:
    """host:port is an address over gRPC; over HTTP the error shows the URL that it should have been."""
    assert resolve(otlp_endpoint="collector:4317", otlp_protocol="grpc").otlp_endpoint == "collector:4317"
    assert "such as http://collector:4317" in complaint(otlp_endpoint="collector:4317")


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "TASKPILOT_OTLP_ENDPOINT"])
def test_an_endpoint_without_scheme_is_told_by_its_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a variable gave the endpoint, the error names the variable."""
    monkeypatch.setenv(variable, "collector:4317")
    with pytest.raises(ConfigurationError, match=f"^{variable}='collector:4317': over http/protobuf expected a URL"):
        Settings()


def test_resource_attributes_are_read_as_opentelemetry_reads_them() -> None:
    """Pairs are percent-decoded, and the service's name is not one of them."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop, team=a%2Cb ,,deployment.environment.name=prod,"}

    assert {"team": "a,b", "deployment.environment.name": "prod"} == resolve(environ).resource_attributes


@pytest.mark.parametrize("word", ["stderr", "stdout", "off", "STDERR"])
def test_logs_go_to_a_word(word: str) -> None:
    """The three words are taken in any case."""
    assert word.lower() == resolve(logs=word).logs == resolve({"TASKPILOT_LOGS": word}).logs


@pytest.mark.parametrize("path", ["agents.log", "logs/agents", "/var/log/agents.jsonl"])
def test_logs_go_to_a_path(path: str) -> None:
    """Text with a separator or a suffix is a path, as is a Path."""
    assert Path(path) == resolve(logs=path).logs == resolve({"TASKPILOT_LOGS": path}).logs
    assert Path(path) == resolve(logs=Path(path)).logs


@pytest.mark.parametrize("target", [io.StringIO(), logging.getLogger("app")])
def test_logs_go_to_an_object(target: object) -> None:
    """An open stream or a logger is held as it is."""
    assert target is resolve(logs=target).logs


def test_objects_are_held_as_they_are() -> None:
    """Registry, provider, clock, redaction and price table are the caller's own objects."""
    objects: dict[str, Any] = {
        "registry": CollectorRegistry(),
        "tracer_provider": TracerProvider(),
        "clock": Clock(lambda: 1, lambda: 2),
        "redact": str.upper,
        "pricing": {"my-model": {"input": 1, "output": 2}},
    }

    settings = resolve(**objects)

    assert [] == [name for name, given_object in objects.items() if given_object is not getattr(settings, name)]


# --- what is said when it is wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"aliases": 1},
            "aliases=1: expected a bool (in text: 1/0, true/false, yes/no, on/off)",
        ),
        ({"label_cap": True}, "label_cap=True: expected a whole number from 1 to 10000"),
        ({"label_cap": "50"}, "label_cap='50': expected a whole number from 1 to 10000 (did you mean 50?)"),
        ({"metrics_port": 70000}, "metrics_port=70000: expected a whole number from 0 to 65535, or None"),
        ({"service_name": " "}, "service_name=' ': expected text that is not empty"),
        ({"log_profile": "esc"}, "log_profile='esc': expected one of flat, ecs (did you mean 'ecs'?)"),
        ({"log_profile": False}, "log_profile=False: expected one of flat, ecs"),
        (
            {"capture_content": "spans_only"},
            "capture_content='spans_only': expected one of no_content, span_only, event_only, span_and_event, "
            "true or false (did you mean 'span_only'?)",
        ),
        (
            {"logs": "stder"},
            "logs='stder': expected stderr, stdout, off, the path of a file (with a / or a suffix), a stream or a "
            "logging.Logger (did you mean 'stderr'?)",
        ),
        (
            {"otlp_protocol": "http/json"},
            "otlp_protocol='http/json': expected one of http/protobuf, grpc",
        ),
        (
            {"otlp_endpoint": "ftp://x"},
            "otlp_endpoint='ftp://x': expected a URL such as http://localhost:4318 (or host:port for gRPC), or None",
        ),
        (
            {"pricing": 2.5},
            """pricing=2.5: expected a mapping such as {"my-model": {"input": 2.50, "output": 10.00}}, or None""",
        ),
        ({"redact": "all"}, "redact='all': expected a function from text to text, or None"),
        (
            {"registry": CollectorRegistry},
            f"registry={CollectorRegistry!r}: expected a prometheus_client.CollectorRegistry, or None",
        ),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(arguments: dict[str, object], expected: str) -> None:
    """The message names the setting, shows the value, and lists what is valid; it is the same for Settings(...)."""
    assert expected == complaint(**arguments)
    with pytest.raises(ConfigurationError) as raised:
        Settings(**arguments)  # type: ignore[arg-type]
    assert expected == str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (
            "TASKPILOT_ENABLED",
            "ture",
            "expected a bool (in text: 1/0, true/false, yes/no, on/off) (did you mean 'true'?)",
        ),
        ("TASKPILOT_METRICS_PORT", "94.64", "expected a whole number from 0 to 65535, or None"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grcp", "expected one of http/protobuf, grpc (did you mean 'grpc'?)"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "team",
            "expected names with str, bool, int or float values, without service.name (in text: key=value,key=value)",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "collector",
            "expected a URL such as http://localhost:4318 (or host:port for gRPC)",
        ),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(variable: str, value: str, expected: str) -> None:
    """The message names the environment variable, not the setting behind it."""
    assert f"{variable}={value!r}: {expected}" == complaint({variable: value})


NAMES = [row.name for row in Settings.table()]
#: Words that some setting knows, and what may come of them at a keyboard.
KNOWN = st.sampled_from(sorted(
    {word for row in Settings.table() for word in row.type.replace("list of ", "").split(" | ")}
    | {"1", "0", "yes", "no", "on", "true", "false", "none", "200", "9464", "a=b", "a,b", "langchain,openai_agents"}
))  # fmt: skip
TYPED = st.one_of(
    KNOWN, st.text(max_size=12), st.builds(lambda word, at: word[:at] + word[at + 1 :], KNOWN, st.integers(0, 8))
)


def suggestion(said: str) -> Any:
    """Return what a complaint asks whether it was meant; None where it does not ask."""
    found = re.search(r" \(did you mean (.+)\?\)$", said)
    return ast.literal_eval(found[1]) if found is not None else None


@given(name=st.sampled_from(NAMES), value=st.one_of(TYPED, st.lists(TYPED, min_size=1, max_size=1)))
def test_what_is_suggested_for_an_argument_is_taken(name: str, value: str | list[str]) -> None:
    """What a complaint asks for is never what was refused, and would have been accepted."""
    try:
        resolve(**{name: value})
    except ConfigurationError as error:
        meant = suggestion(str(error))
        if meant is not None:
            better = [meant] if isinstance(value, list) else meant
            assert value != better
            resolve(**{name: better})


@given(
    variable=st.sampled_from([name for row in Settings.table() for name in row.variables]),
    text=TYPED.filter(lambda text: "\0" not in text),
)
def test_what_is_suggested_for_a_variable_is_taken(variable: str, text: str) -> None:
    """So with variables, whose values are text."""
    try:
        resolve({variable: text})
    except ConfigurationError as error:
        meant = suggestion(str(error))
        if meant is not None:
            assert text != meant
            resolve({variable: meant})


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("aliases", "yes", "True"),
        ("aliases", "off", "False"),
        ("label_cap", "200", "200"),
        ("metrics_port", "none", "None"),
        ("frameworks", "langchain", "('langchain',)"),
        ("frameworks", ["langchian"], "'langchain'"),
        ("resource_attributes", "team=a", "{'team': 'a'}"),
    ],
)
def test_text_in_python_is_answered_with_its_value(name: str, value: object, meant: str) -> None:
    """Where an argument is given as a variable would be, the complaint says how Python has it."""
    assert complaint(**{name: value}).endswith(f" (did you mean {meant}?)")


def test_a_long_wrong_value_is_cut_in_the_message() -> None:
    """What was given is quoted to a length that a log line can bear."""
    assert len(complaint(log_level="x" * 10_000)) < 300


def test_an_unknown_setting_is_told_with_the_valid_ones() -> None:
    """A misspelt argument names the one that was meant, and all that there are."""
    said = complaint(label_cpa=5)

    assert said.startswith("unknown setting 'label_cpa' (did you mean 'label_cap'?). Valid settings: alerts, aliases, ")
    assert [each.name for each in fields(Settings)] == [each.name for each in fields(Settings) if each.name in said]


def test_misspelt_variables_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """TASKPILOT_* variables that nearly are settings are warned of together, each with what was meant."""
    resolve({"TASKPILOT_LABELCAP": "5", "TASKPILOT_LOG_LEVLE": "INFO"})

    assert [
        "taskpilot_instrument: no setting has the environment variable "
        "TASKPILOT_LABELCAP (did you mean 'TASKPILOT_LABEL_CAP'?), "
        "TASKPILOT_LOG_LEVLE (did you mean 'TASKPILOT_LOG_LEVEL'?)"
    ] == [record.getMessage() for record in caplog.records]


def test_variables_of_the_application_are_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """A TASKPILOT_* variable that resembles no setting is nobody's mistake."""
    assert resolve() == resolve({"TASKPILOT_DATABASE_URL": "sqlite://", "TASKPILOT_REQUIRE_BACKENDS": "1"})

    assert [] == caplog.records


# --- the table ----------------------------------------------------------------------------------


def test_the_table_has_every_setting_and_its_own_variable() -> None:
    """Every setting has a row with a doc; what text can say has a variable TASKPILOT_<NAME>, named first."""
    rows = Settings.table()

    assert [each.name for each in fields(Settings)] == [row.name for row in rows]
    assert all(row.doc.endswith(".") and row.type for row in rows)
    assert [f"TASKPILOT_{row.name.upper()}" for row in rows if row.variables] == [
        row.variables[0] for row in rows if row.variables
    ]
