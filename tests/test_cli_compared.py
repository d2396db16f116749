"""The commands models, experiments, check and serve, against real servers and as real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from backends import OBSERVABILITY, prometheus, wait_for
from otlp_receiver import GrpcReceiver, HttpReceiver, Receiver

import taskpilot_instrument as tp
from taskpilot_instrument._experiment_report import ExperimentReport
from taskpilot_instrument.cli import main
from taskpilot_instrument.comparison import ModelComparison
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve

RULES = OBSERVABILITY / "prometheus"


@pytest.fixture
def shown() -> Iterator[tuple[Captured, Server]]:
    """A page over instrumentation in memory."""
    with capture() as captured, serve(0, handle=captured.handle) as server:
        yield captured, server


@tp.observed_agent
class PlannerAgent:
    """Asks a model."""

    def run(self, client: openai.OpenAI, model: str) -> None:
        """Run."""
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])


def experiment_runs(count: int, *, failing: str = "", only: str = "") -> None:
    """Make runs of an experiment, each of a user of its own.

    :param failing: the variant whose runs fail.
    :param only: the variant whose runs alone are told, as where those of another are lost.
    """
    for number in range(count):
        with tp.experiment("planner-prompt", ["control", "terse"], unit=f"user-{number}") as variant:
            if only in {"", variant}:
                with tp.workflow("triage") as run:
                    if variant == failing:
                        run.fail("no")


# --- models and experiments ---------------------------------------------------------------------


def test_models(shown: tuple[Captured, Server], client: openai.OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    """The table is the library's own, the JSON the API's; that no model was called is exit status 1."""
    url = shown[1].url
    assert 1 == main(["models", "--url", url])
    assert "no call yet" in capsys.readouterr().out
    for model in ("gpt-4o-mini", "gpt-4.1"):
        PlannerAgent().run(client, model)
    assert 0 == main(["models", "--url", url, "--window", "1h", "--agent", "PlannerAgent"])
    expected = shown[0].handle.compare_models(window="1h", agent="PlannerAgent")
    assert f"{expected}\n" == capsys.readouterr().out
    assert 0 == main(["models", "--url", url, "--format", "json"])
    found = ModelComparison.from_dict(json.loads(capsys.readouterr().out))
    assert shown[0].handle.compare_models() == found
    assert 1 == main(["models", "--url", url, "--agent", "nobody"])
    capsys.readouterr()
    assert 0 == main(["models", "--url", url, "--reprice", "gpt-4o", "--reprice", "gpt-4.1-nano"])
    assert f"{shown[0].handle.compare_models(reprice=['gpt-4o', 'gpt-4.1-nano'])}\n" == capsys.readouterr().out


def test_experiments(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """All are listed with their verdicts; one is shown as the library shows it."""
    url = shown[1].url
    assert 0 == main(["experiments", "--url", url])
    assert "No experiment has had a run yet" in capsys.readouterr().out
    experiment_runs(30)
    assert 0 == main(["experiments", "--url", url])
    out = capsys.readouterr().out
    assert re.search(r"planner-prompt +terse +\d+ +100.00 % .* keep running$", out, re.MULTILINE)
    assert re.search(r"planner-prompt +control +\d+ +100.00 % .* –$", out, re.MULTILINE)
    report = shown[0].handle.experiment_report("planner-prompt")
    assert 0 == main(["experiments", "planner-prompt", "--url", url])
    assert f"{report}\n" == capsys.readouterr().out
    assert 0 == main(["experiments", "planner-prompt", "--url", url, "--format", "json"])
    assert report == ExperimentReport.from_dict(json.loads(capsys.readouterr().out))
    assert 0 == main(["experiments", "--url", url, "--format", "json", "--window", "1h"])
    assert ["not judged"] == [each["verdict"] for each in json.loads(capsys.readouterr().out)]


def test_a_worse_variant_is_the_exit_status(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """A variant whose runs fail makes both forms of the command fail."""
    experiment_runs(400, failing="terse")
    url = shown[1].url
    assert [1, 1] == [main(["experiments", *name, "--url", url]) for name in ([], ["planner-prompt"])]
    out = capsys.readouterr().out
    assert re.search(r"planner-prompt +terse +\d+ +0.00 % .* worse$", out, re.MULTILINE)
    assert "terse worse" in out


def test_a_broken_assignment_is_the_exit_status(
    shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the runs of a variant are lost nothing else is said, and the command fails."""
    experiment_runs(100, only="control")
    experiment_runs(4)
    assert 1 == main(["experiments", "planner-prompt", "--url", shown[1].url])
    assert "Assignment broken, do not read on" in capsys.readouterr().out


def test_an_unknown_experiment_is_told(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name is exit status 2, with the names that there are."""
    experiment_runs(1)
    assert 2 == main(["experiments", "a/wrong name?", "--url", shown[1].url])
    assert "known are planner-prompt" in capsys.readouterr().err


# --- signals ------------------------------------------------------------------------------------


def test_watching_ends_where_it_fails(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--watch`` and ``--fail-on`` the command goes on until the verdict is that bad; each look is a line."""
    experiment_runs(1, failing="control")
    experiment_runs(3, failing="terse")
    watching = ["signals", "--url", shown[1].url, "--watch", "1", "--fail-on", "critical", "--format", "json"]
    assert 1 == main(watching)
    lines = capsys.readouterr().out.splitlines()
    assert ["critical"] == [json.loads(line)["verdict"] for line in lines]


def test_watching_waits_for_a_page() -> None:
    """A page that went away is said so once and waited for; when it is back, its figures are shown again."""
    with capture() as captured:
        with serve(0, handle=captured.handle) as server:
            url = server.url
            command = [sys.executable, "-m", "taskpilot_instrument.cli", "signals", "--url", url]
            watching = [*command, "--watch", "1", "--fail-on", "critical", "--format", "json"]
            process = subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert process.stderr is not None
            assert 0 == json.loads(process.stdout.readline())["runs"]
        assert "Waiting for it." in process.stderr.readline()
        experiment_runs(2, failing="control")
        experiment_runs(2, failing="terse")
        with serve(int(url.rstrip("/").rpartition(":")[2]), handle=captured.handle):
            out, said = process.communicate(timeout=30)
    assert (1, "critical", "") == (process.returncode, json.loads(out.splitlines()[-1])["verdict"], said)


def test_watching_ends_where_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A token that is missing will be missing the next time, too: exit status 2."""
    with capture() as captured, serve(0, handle=captured.handle, token="x" * 16) as server:
        assert 2 == main(["signals", "--url", server.url, "--watch", "1"])
    assert "a token is needed" in capsys.readouterr().err


# --- check --------------------------------------------------------------------------------------


def checked(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, tuple[str, str]]]:
    """Run ``check``; return its exit status, and state and detail of each part."""
    status = main(["check", "--format", "json", *arguments])
    rows: list[dict[str, str]] = json.loads(capsys.readouterr().out)
    return status, {row["part"]: (row["state"], row["detail"]) for row in rows}


@pytest.mark.parametrize("kind", [HttpReceiver, GrpcReceiver])
def test_check_sends_an_export(
    kind: type[Receiver], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that takes an export is well; one that refuses it, or is none, is not."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", kind.protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    for answer, expected in ((True, "ok"), (False, "wrong")):
        with kind(answer=answer) as receiver:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.origin)
            status, parts = checked(capsys=capsys)
        assert (int(not answer), expected) == (status, parts["spans"][0]), parts["spans"]
        assert [] == receiver.spans


def test_check_asks_for_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    """The price of the model that is meant has to be known."""
    assert "ok" == checked("--model", "gpt-4.1", capsys=capsys)[1]["prices"][0]
    status, parts = checked("--model", "my-own-model", capsys=capsys)
    assert (1, "wrong") == (status, parts["prices"][0])
    assert "MODEL_PRICING" in parts["prices"][1]


def test_check_makes_no_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that is not there yet is told, and not made; a path that cannot be made is wrong."""
    (tmp_path / "read-only").mkdir(mode=0o500)
    cases = {"ledger.db": "ok", "state/ledger.db": "ok", "stat/app/ledger.db": "wrong"}
    if os.geteuid():  # nothing is read-only for root
        cases["read-only/ledger.db"] = "wrong"
    for name, state in cases.items():
        monkeypatch.setenv("TASKPILOT_LEDGER", str(tmp_path / name))
        status, parts = checked(capsys=capsys)
        assert (int(state == "wrong"), state) == (status, parts["ledger"][0])
        assert str(tmp_path / name) in parts["ledger"][1]
    assert ["read-only"] == [each.name for each in tmp_path.iterdir()]
    monkeypatch.setenv("TASKPILOT_LEDGER", str(tmp_path / "ledger.db"))
    with tp.instrument(logs="off"):
        pass
    assert ("ok", str(tmp_path / "ledger.db")) == checked(capsys=capsys)[1]["ledger"]


def test_check_tells_wrong_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be read is named, and nothing is tried with it."""
    monkeypatch.setenv("TASKPILOT_LABEL_CAP", "many")
    status, parts = checked(capsys=capsys)
    assert (1, ["settings"]) == (status, list(parts))
    assert "TASKPILOT_LABEL_CAP" in parts["settings"][1]


@pytest.mark.parametrize(
    ("files", "state", "said"),
    [
        (["golden-signals-recording.yml", "golden-signals-alerts.yml"], "ok", "alerts"),
        (["golden-signals-alerts.yml"], "wrong", "nothing records job:taskpilot_"),
        ([], "wrong", "load observability/prometheus"),
    ],
)
def test_check_looks_for_the_rules(
    files: list[str], state: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real Prometheus is asked whether the rules are loaded, all of them, and whether it scrapes the service."""
    config: dict[str, Any] = {"rule_files": [str(RULES / name) for name in files], "scrape_configs": []}
    with prometheus(tmp_path, config) as running:
        _, parts = checked("--prometheus", running.url, capsys=capsys)
    assert state == parts["rules"][0]
    assert said in parts["rules"][1]
    assert ("wrong", 'no target has job="taskpilot", the name of the service') == parts["scraping"]


def test_check_looks_for_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target of the service's name that answers is well."""
    with capture() as captured, serve(0, handle=captured.handle) as server:
        target = server.url.removeprefix("http://").rstrip("/")
        job = {"job_name": "taskpilot", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
        with prometheus(tmp_path, {"scrape_configs": [job]}) as running:
            wait_for("the first scrape", lambda: running.value('up{job="taskpilot"}'))
            _, parts = checked("--prometheus", running.url, capsys=capsys)
            _, others = checked("--prometheus", f"{running.url}?job=another&zone=a", capsys=capsys)
    assert ("ok", "1 of 1 targets answer") == parts["scraping"]
    assert ("wrong", 'no target has job="another",zone="a"') == others["scraping"]


def test_check_tells_that_it_is_no_prometheus(capsys: pytest.CaptureFixture[str]) -> None:
    """Something else that answers there is wrong, and so is a Prometheus that refuses."""
    with capture() as captured, serve(0, handle=captured.handle) as server:
        status, parts = checked("--prometheus", server.url, capsys=capsys)
    assert (1, "wrong") == (status, parts["rules"][0])
    assert "answered HTTP 404" in parts["rules"][1]


def test_check_tells_that_prometheus_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    """No Prometheus there, or no address, is wrong; not asked for, it is off."""
    for url, said in (
        ("http://127.0.0.1:1", "http://127.0.0.1:1 cannot be asked (ConnectionRefusedError"),
        ("127.0.0.1", "--prometheus='127.0.0.1': expected the URL of a Prometheus"),
    ):
        status, parts = checked("--prometheus", url, capsys=capsys)
        assert (1, "wrong") == (status, parts["rules"][0])
        assert said in parts["rules"][1]
    assert "off" == checked(capsys=capsys)[1]["rules"][0]


# --- serve --------------------------------------------------------------------------------------


@pytest.mark.parametrize("polite", [signal.SIGTERM, signal.SIGINT])
def test_serve(polite: signal.Signals, tmp_path: Path) -> None:
    """``serve MODULE`` shows what the module does over HTTP, and ends well and quietly, also while somebody watches."""
    (tmp_path / "my_agents.py").write_text("import taskpilot_instrument as tp\nwith tp.workflow('triage'):\n    pass\n")
    command = [sys.executable, "-m", "taskpilot_instrument.cli", "serve", "my_agents", "--port", "0"]
    environment = {**os.environ, "TASKPILOT_LOGS": "off"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        with httpx.stream("GET", f"{found[0]}live", timeout=30) as watched:
            state = json.loads(next(watched.iter_lines()).removeprefix("data: "))
            assert ["triage"] == [run["name"] for run in httpx.get(f"{found[0]}runs").json()] or state["runs"] == []
            assert 1 == httpx.get(f"{found[0]}signals").json()["runs"]
            process.send_signal(polite)
            output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (0, "", "") == (process.returncode, output.strip(), errors)


def test_serve_tells_a_module_that_is_not_there(tmp_path: Path) -> None:
    """A wrong module is exit status 2 and a sentence."""
    command = [sys.executable, "-m", "taskpilot_instrument.cli", "serve", "not_there", "--port", "0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == ended.returncode
    assert "not_there" in ended.stderr
    assert "Traceback" not in ended.stderr
