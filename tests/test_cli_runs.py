"""``taskpilot-instrument runs``: what ran last, and what went wrong in it, from a page on a real socket."""

import json
from collections.abc import Iterator

import openai
import pytest

import taskpilot_instrument as tp
from taskpilot_instrument.cli import main
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve


@pytest.fixture
def shown() -> Iterator[tuple[Captured, Server]]:
    """A page over instrumentation in memory."""
    with capture() as captured, serve(0, handle=captured.handle) as server:
        captured.handle.ring()
        yield captured, server


@tp.observed_tool
def page_somebody() -> None:
    """Fail."""
    raise ConnectionError("the pager\ndoes not answer")


@tp.observed_agent
class PlannerAgent:
    """Asks a model, and pages somebody."""

    def run(self, client: openai.OpenAI, *, pages: bool) -> None:
        """Run."""
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
        if pages:
            page_somebody()


def run_both(client: openai.OpenAI) -> None:
    """Make a run that ends well, and then one that does not."""
    with tp.workflow("triage", request_id="req-1"):
        PlannerAgent().run(client, pages=False)
    with pytest.raises(ConnectionError), tp.workflow("triage", request_id="req-2"):
        PlannerAgent().run(client, pages=True)


def test_runs(shown: tuple[Captured, Server], client: openai.OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    """The latest come first, each a line that says where it went wrong."""
    assert 0 == main(["runs", "--url", shown[1].url])
    assert "No run has ended yet.\n" == capsys.readouterr().out
    run_both(client)
    assert 0 == main(["runs", "--url", shown[1].url])
    _, failed, well = capsys.readouterr().out.splitlines()
    assert ["triage", "error"] == failed.split()[1:3]
    assert failed.endswith("req-2       page_somebody: ConnectionError: the pager does not answer")
    assert ["triage", "success"] == well.split()[1:3]
    assert well.endswith("req-1")


def test_some_of_them(
    shown: tuple[Captured, Server], client: openai.OpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are told apart by how they ended, and there are no more than was asked for."""
    run_both(client)
    for options, expected in (
        (["--outcome", "error"], ["req-2"]),
        (["--most", "1"], ["req-2"]),
        (["req-1"], ["req-1"]),
    ):
        assert 0 == main(["runs", "--url", shown[1].url, "--format", "json", *options])
        assert expected == [run["request_id"] for run in json.loads(capsys.readouterr().out)]
    assert 0 == main(["runs", "--url", shown[1].url, "--outcome", "blocked"])
    assert "None of the latest runs ended in blocked.\n" == capsys.readouterr().out


@pytest.mark.parametrize("by", ["request_id", "trace_id"])
def test_one_run(
    by: str, shown: tuple[Captured, Server], client: openai.OpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run is drawn span by span, with its figures and with what failed where."""
    run_both(client)
    name = shown[0].handle.ring().runs()[0][by]
    assert 0 == main(["runs", name, "--url", shown[1].url])
    head, columns, *spans = capsys.readouterr().out.splitlines()
    assert head.startswith("triage, 20")
    assert f"request req-2, trace {shown[0].handle.ring().runs()[0]['trace_id']}" in head
    assert ["tokens", "in", "tokens", "out", "cost", "latency"] == columns.split()
    assert ["  triage", "    PlannerAgent", "      chat gpt-4o-mini", "      page_somebody"] == [
        line[: len(line) - len(line.lstrip())] + "  ".join(line.split("  ")).strip().split("  ")[0] for line in spans
    ]
    failing = "ConnectionError: the pager does not answer"
    assert [True, True, False, True] == [line.endswith(failing) for line in spans]


def test_an_unknown_run_is_told(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is not kept is exit status 2 and a sentence."""
    assert 2 == main(["runs", "req-nope", "--url", shown[1].url])
    assert "no run req-nope is among the latest" in capsys.readouterr().err


def test_failures_outlive_successes(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of each outcome are kept apart: thousands of successes, or refusals, leave the failures where they are."""
    for number in range(3):
        with pytest.raises(ConnectionError), tp.workflow("triage", request_id=f"ill-{number}"):
            page_somebody()
    for number in range(2_000):
        with tp.workflow("triage", request_id=f"well-{number}"):
            pass
        with tp.workflow("triage", request_id=f"refused-{number}") as run:
            run.block("no")
    assert 0 == main(["runs", "--url", shown[1].url, "--outcome", "error"])
    assert ["ill-2", "ill-1", "ill-0"] == [line.split()[6] for line in capsys.readouterr().out.splitlines()[1:]]
    assert 0 == main(["runs", "ill-0", "--url", shown[1].url])
    assert "the pager does not answer" in capsys.readouterr().out
    assert 0 == main(["runs", "--url", shown[1].url, "--most", "2"])
    _, *latest, said = capsys.readouterr().out.splitlines()
    assert ["refused-1999", "well-1999"] == [line.split()[6] for line in latest]
    assert "2 of the 403 that are kept (blocked 200, success 200, error 3); --most N shows more." == said
    shown_on_page = shown[0].handle.ring().runs()
    assert sorted((run["started"] for run in shown_on_page), reverse=True) == [run["started"] for run in shown_on_page]
