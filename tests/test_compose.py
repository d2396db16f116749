"""What ``observability/compose.yaml`` starts fits together: it cannot be started here, so references are checked."""

import json
import re
from typing import Any, Final

import pytest
import yaml
from backends import OBSERVABILITY, needs_folder

pytestmark = needs_folder

FILE: Final = OBSERVABILITY / "compose.yaml"
SERVICES: Final[dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"] if FILE.exists() else {}
#: Hosts that no service is: the machine itself.
OUTSIDE: Final = {"host.docker.internal"}


def test_each_tool_has_a_service() -> None:
    """Every folder belongs to something that is started, and is mounted there."""
    mounted = " ".join(volume for service in SERVICES.values() for volume in service.get("volumes", ()))
    folders = {each.name for each in OBSERVABILITY.iterdir() if each.is_dir()} - {"kibana", "logs", "__pycache__"}
    assert {
        "alertmanager",
        "filebeat",
        "grafana",
        "otel-collector",
        "prometheus",
    } == folders  # kibana/ is loaded by hand
    assert [] == sorted(folder for folder in folders if f"./{folder}" not in mounted)


@pytest.mark.parametrize("name", SERVICES)
def test_service(name: str) -> None:
    """Its image has a version, its files exist, its ports are for this machine only, what it depends on is there."""
    service = SERVICES[name]
    assert re.search(r":[v\d][\w.-]+$", service["image"])
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert not source.startswith("./") or (OBSERVABILITY / source).exists(), source
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")
    assert set(service.get("depends_on", ())) <= set(SERVICES)


def test_hosts_are_services() -> None:
    """Where one tool names another by host and port, that is a service."""
    prometheus = yaml.safe_load((OBSERVABILITY / "prometheus" / "prometheus.yml").read_text())
    targets = re.findall(r'"targets": \["([\w.-]+):\d+"\]', json.dumps(prometheus))
    texts = [
        (OBSERVABILITY / "alertmanager" / "alertmanager.yml").read_text(),
        (OBSERVABILITY / "grafana" / "provisioning" / "datasources" / "datasources.yaml").read_text(),
        json.dumps(SERVICES),
    ]
    hosts = {*targets, *(host for text in texts for host in re.findall(r"http://([\w.-]+):\d+", text))}
    assert {"alertmanager", "pushgateway", "otel-collector", "webhook", "prometheus", "jaeger"} <= hosts
    assert OUTSIDE == hosts - set(SERVICES)
