"""Configurations of the OpenTelemetry collector: read, and checked for what the collector itself would refuse."""

import re
from pathlib import Path
from typing import Any

import yaml

OBSERVABILITY = Path(__file__).resolve().parent.parent / "observability"
_KINDS = ("receivers", "processors", "exporters")


def read(path: Path, **environ: str) -> Any:
    """Read a configuration with ``${env:NAME:-default}`` filled in, as the collector does."""

    def value(found: re.Match[str]) -> str:
        return environ.get(found[1], found[2] or "")

    return yaml.safe_load(re.sub(r"\$\{env:(\w+)(?::-([^}]*))?\}", value, path.read_text()))


def check_wiring(config: dict[str, Any]) -> None:
    """Assert that pipelines name only what is defined, and that all that is defined is in a pipeline."""
    pipelines = config["service"]["pipelines"]
    assert set(config) == {*_KINDS, "service"}
    for kind in _KINDS:
        used = {name for pipeline in pipelines.values() for name in pipeline.get(kind, [])}
        assert set(config[kind]) == used, kind
    for name, pipeline in pipelines.items():
        assert pipeline["receivers"], name
        assert pipeline["exporters"], name
        assert pipeline["processors"][0] == "memory_limiter", name


def variables(path: Path) -> set[str]:
    """Return the environment variables that a configuration or a script reads."""
    return set(re.findall(r"\$\{(?:env:)?([A-Z_]+)", path.read_text()))
