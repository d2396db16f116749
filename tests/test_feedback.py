"""What users think of results is counted where their run is, once, and can be changed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.feedback import make_token, read_token
from taskpilot_instrument.sinks.ledger import open_ledger
from taskpilot_instrument.testing import Captured, capture

TRACE = "0" * 31 + "9"


@tp.observed_agent
class PlannerAgent:
    """Asks a model."""

    def run(self, client: openai.OpenAI) -> str:
        """Run."""
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
        return "done"


@tp.observed_agent
class ReviewerAgent:
    """Runs after the planner."""

    def run(self) -> str:
        """Run."""
        return "fine"


def one_run(client: openai.OpenAI, request_id: str = "req-a") -> None:
    """Run both agents in one workflow."""
    with tp.workflow("triage", request_id=request_id):
        PlannerAgent().run(client)
        ReviewerAgent().run()


def votes(captured: Captured) -> tuple[float, float]:
    """Return how many confirmed and how many did not."""
    get = captured.metrics.get_counter
    return get("llm.quality.user_confirmed_correct"), get("llm.quality.user_confirmed_incorrect")


def test_a_vote_counts_under_its_run(captured: Captured, client: openai.OpenAI) -> None:
    """The vote counts under the agent that gave the result and the workflow, and is in the log and in the trace."""
    one_run(client)
    run = captured.span("workflow.run")
    receipt = captured.handle.record_feedback(correct=True, request_id="req-a", user="ann", score=0.9, comment="good")
    span = captured.span("user.feedback")
    (event,) = span.events
    (line,) = [line for line in captured.logs if line["event_name"] == "feedback.recorded"]
    assert (True, False) == (receipt.linked, receipt.replaced)
    assert run.context.trace_id == span.context.trace_id
    assert run.context.span_id == span.parent.span_id
    assert "gen_ai.evaluation.result" == event.name
    evaluation = dict(event.attributes or {})
    assert ("correct", 0.9) == (
        evaluation["gen_ai.evaluation.score.label"],
        evaluation["gen_ai.evaluation.score.value"],
    )
    assert ("req-a", "triage", "ReviewerAgent") == (line["request_id"], line["workflow"], line["agent"])
    assert f"{run.context.trace_id:032x}" == line["trace_id"]
    assert 'taskpilot_feedback_total{agent="ReviewerAgent",verdict="correct"} 1.0' in captured.prometheus_text
    assert 100.0 == captured.golden_signals(workflow="triage").user_confirmed_correctness_percent
    assert "good" not in str(line) + str(span.attributes) + str(event.attributes)


def test_a_changed_mind_replaces_the_vote(captured: Captured, client: openai.OpenAI) -> None:
    """A replay changes nothing; the other verdict takes the place of the first, in figures and ledger alike."""
    one_run(client)
    for correct in (True, True, False, False, True, False):
        captured.handle.record_feedback(correct, request_id="req-a", user="ann")
    captured.handle.record_feedback(correct=True, request_id="req-a", user="bob")
    assert (1.0, 1.0) == votes(captured)
    assert 2 == len(captured.handle._feedback().ledger.votes(0, 1e12))
    assert 50.0 == captured.golden_signals().user_confirmed_correctness_percent


def test_an_unknown_run_is_accepted(captured: Captured) -> None:
    """Feedback on a run that nobody knows counts, without an agent, and says that it is unlinked."""
    receipt = captured.handle.record_feedback(correct=False, request_id="req-unknown")
    assert not receipt.linked
    assert (0.0, 1.0) == votes(captured)
    assert "user.feedback" not in captured.names()


def test_a_replay_is_not_told_again(captured: Captured, client: openai.OpenAI) -> None:
    """The same vote a second time writes no line, makes no span, and says that it was there."""
    one_run(client)
    receipts = [captured.handle.record_feedback(correct=True, request_id="req-a", user="ann") for _ in range(3)]
    assert [False, True, True] == [each.replaced for each in receipts]
    assert 1 == [line["event_name"] for line in captured.logs].count("feedback.recorded")
    assert 1 == captured.names().count("user.feedback")


@pytest.mark.parametrize("known_by", ["request_id", "trace_id"])
def test_whatever_a_run_is_named_by_its_vote_has_all_its_names(
    captured: Captured, client: openai.OpenAI, known_by: str
) -> None:
    """A vote by request id has the trace, and one by trace the request id, in ledger and log; both have the model."""
    one_run(client)
    names = {"request_id": "req-a", "trace_id": f"{captured.span('workflow.run').context.trace_id:032x}"}
    receipt = captured.handle.record_feedback(correct=True, id="vote-1", **{known_by: names[known_by]})
    (line,) = [line for line in captured.logs if line["event_name"] == "feedback.recorded"]
    assert names == {name: line[name] for name in names}
    assert ("vote-1", True, "gpt-4o-mini") == (receipt.id, receipt.linked, line["model"])


def test_a_trace_that_nobody_knows_is_accepted(captured: Captured) -> None:
    """It may be of another process; the vote counts unlinked."""
    assert not captured.handle.record_feedback(correct=True, trace_id=TRACE).linked
    assert (1, 0) == votes(captured)


def test_the_trace_id_names_the_run_too(captured: Captured, client: openai.OpenAI) -> None:
    """A vote by trace id and a vote by request id on one run are the same user's one vote."""
    with tp.workflow("triage") as run:
        PlannerAgent().run(client)
    assert run.trace_id is not None
    by_trace = captured.handle.record_feedback(correct=True, trace_id=run.trace_id)
    by_request = captured.handle.record_feedback(correct=True, request_id=run.request_id)
    assert by_trace.linked
    assert by_trace.id == by_request.id
    assert (1.0, 0.0) == votes(captured)


@given(st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid"]), st.booleans()), max_size=20))
def test_figures_and_ledger_stay_equal(given_votes: list[tuple[str, bool]]) -> None:
    """Whatever users vote, and however often, the figures are those of each user's last vote."""
    last = dict(given_votes)
    with capture() as captured:
        for user, correct in given_votes:
            captured.handle.record_feedback(correct, request_id="r", user=user)
        assert (sum(last.values()), len(last) - sum(last.values())) == votes(captured)


RUN = """
import sys
import taskpilot_instrument as tp

@tp.observed_agent
def planner():
    return "done"

with tp.instrument(ledger=sys.argv[1], logs="off"), tp.workflow("triage", request_id="req-there"):
    planner()
"""


def test_hours_later_in_another_process(tmp_path: Path) -> None:
    """A run of a process that is gone is found in the shared ledger, and the vote counts under its agent and trace."""
    ledger = str(tmp_path / "ledger.db")
    subprocess.run([sys.executable, "-c", RUN, ledger], check=True, timeout=60)
    with capture(ledger=ledger) as captured:
        receipt = captured.handle.record_feedback(correct=True, request_id="req-there")
        assert receipt.linked
        assert 'taskpilot_feedback_total{agent="planner",verdict="correct"} 1.0' in captured.prometheus_text
        assert "user.feedback" in captured.names()
    opened = open_ledger(ledger)
    (vote,) = opened.votes(0, 1e12)
    (first, *_) = opened.rollups(0, 1e12)
    opened.close()
    assert (True, "planner", "triage") == (vote.linked, vote.agent, vote.workflow)
    assert ("workflow=triage", 1) == (first.key, first.figures["runs"])


def test_a_comment_is_shown_only_with_content(client: openai.OpenAI) -> None:
    """With content capture on events the comment is the evaluation's explanation."""
    with capture(capture_content="event_only") as captured:
        one_run(client)
        captured.handle.record_feedback(correct=True, request_id="req-a", comment="good")
        (event,) = captured.span("user.feedback").events
    assert "good" == dict(event.attributes or {})["gen_ai.evaluation.explanation"]


# --- tokens -------------------------------------------------------------------------------------


def test_a_token_votes_on_its_run(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """Whoever has a run's token can vote on that run, and on no other."""
    with capture(feedback_key="k" * 16) as captured:
        with tp.workflow("triage", request_id="req-a") as run:
            PlannerAgent().run(client)
        token = captured.handle.feedback_token(run)
        receipts = [tp.record_feedback(correct, token=token, user="u-1") for correct in (True, True, False)]
        assert [(True, False), (True, True), (True, True)] == [(each.linked, each.replaced) for each in receipts]
        assert tp.record_feedback(False, request_id="req-a", user="u-1").replaced
        counted = [
            captured.metrics.get_counter(f"llm.quality.user_confirmed_{each}") for each in ("correct", "incorrect")
        ]
        assert [0, 1] == counted
        assert 1 == captured.handle.golden_signals(agent="PlannerAgent").feedback


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"token": "tp1.e30.x"}, "the feedback token is not valid"),
        ({"token": ""}, "the feedback token is not valid"),
        ({"token": 5}, r"record_feedback\(token=…\) takes what feedback_token\(run\) returned"),
        ({"token": "valid", "request_id": "req-b"}, "leave request_id and trace_id out"),
        ({"token": "valid", "trace_id": "0" * 32}, "leave request_id and trace_id out"),
        ({"token": "expired"}, "has expired"),
    ],
)
def test_a_token_that_is_none_is_refused(more: dict[str, Any], said: str) -> None:
    """What was changed, made up or is too old counts nothing, from Python as over HTTP."""
    with capture(feedback_key="k" * 16) as captured:
        made = {"valid": tp.feedback_token("req-a"), "expired": tp.feedback_token("req-a", lifetime_s=-1)}
        with pytest.raises(tp.ConfigurationError, match=said):
            tp.record_feedback(True, **{name: made.get(value, value) for name, value in more.items()})
        assert 0 == captured.handle.golden_signals().feedback


def test_a_token_needs_a_key(captured: Captured) -> None:
    """Without a secret there are no tokens, and the error says how to set one."""
    with pytest.raises(tp.ConfigurationError, match="TASKPILOT_FEEDBACK_KEY"):
        captured.handle.feedback_token("req-a")


@pytest.mark.parametrize("key", ["", "s3cr3t", "fifteen letters", b"k" * 32, 16])
def test_a_key_that_can_be_guessed_is_refused(key: Any) -> None:
    """Whoever has a token could try short keys until one fits; the complaint does not show it."""
    with pytest.raises(tp.ConfigurationError, match=r"feedback_key=.*expected 16 characters or more") as caught:
        tp.instrument(feedback_key=key)
    assert "s3cr3t" not in str(caught.value)


@given(st.text(min_size=1), st.text(min_size=1, max_size=200), st.floats(1, 1e6))
def test_a_token_lasts_as_long_as_it_says(key: str, request_id: str, lifetime_s: float) -> None:
    """Any request id comes back out of a token until it expires, and only with the key that signed it."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return
    token = make_token(key, request_id, lifetime_s=lifetime_s, now_s=1_000)
    assert request_id == read_token(key, token, now_s=1_000 + lifetime_s - 1)
    with pytest.raises(tp.ConfigurationError, match="expired"):
        read_token(key, token, now_s=1_000 + lifetime_s)
    with pytest.raises(tp.ConfigurationError, match="not valid"):
        read_token(key + "x", token, now_s=1_000)


@given(st.text(max_size=80))
def test_any_text_is_no_token(text: str) -> None:
    """Whatever is given as a token, the answer is that it is none."""
    with pytest.raises(tp.ConfigurationError):
        read_token("k", text)


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"correct": 1, "request_id": "r"}, "True or False"),
        ({"correct": True}, "give request_id, trace_id or token"),
        ({"correct": True, "request_id": ""}, "request_id"),
        ({"correct": True, "request_id": "r" * 201}, "200 characters"),
        ({"correct": True, "trace_id": "xyz"}, "32 lower-case"),
        ({"correct": True, "request_id": "r", "user": 3}, "user"),
        ({"correct": True, "request_id": "r", "comment": 3}, "comment"),
        ({"correct": True, "request_id": "r", "score": float("nan")}, "score"),
        ({"correct": True, "request_id": "r", "score": True}, "score"),
        ({"correct": True, "request_id": "r", "score": "high"}, "score"),
        ({"correct": True, "trace_id": 5}, "32 lower-case"),
        ({"correct": True, "request_id": "r", "id": ""}, "id"),
    ],
)
def test_wrong_arguments_are_told(captured: Captured, arguments: dict[str, Any], said: str) -> None:
    """An argument that cannot be is a ConfigurationError that says what would be right; nothing is recorded."""
    with pytest.raises(tp.ConfigurationError, match=said):
        captured.handle.record_feedback(**arguments)
    assert (0.0, 0.0) == votes(captured)


def test_before_instrument() -> None:
    """Feedback without instrumentation says what to do."""
    with pytest.raises(tp.NotInstrumentedError):
        tp.record_feedback(correct=True, request_id="r")
