"""Budgets hold when things go wrong: killed processes, an absent ledger, forks, streams that nobody finishes."""

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from backends import wait_for
from prometheus_client.parser import text_string_to_metric_families
from test_budgets import COST, MESSAGES, ask, script

import taskpilot_instrument as tp
from taskpilot_instrument import _backlog, _budget_accounts, _guard, semconv
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.sinks.ledger import open_ledger, to_pico
from taskpilot_instrument.testing import Captured, capture

BLOCKING = tp.Budget("b", "0.01", on_exceed="block")


def told(captured: Captured) -> list[str]:
    """Return the reasons of what was said of thresholds."""
    return [line["reason"] for line in captured.logs if line["event_name"] == "cost.threshold_exceeded"]


def standing(captured: Captured) -> tuple[Decimal, Decimal]:
    """Return what the only account has spent and reserved."""
    (status,) = captured.handle.budgets()
    return status.spent_usd, status.reserved_usd


# --- crashes ------------------------------------------------------------------------------------

KILLED = """
import sys, openai, taskpilot_instrument as tp
from taskpilot_instrument.testing import capture
url, ledger = sys.argv[1:]
with capture(budgets=[tp.Budget("b", "0.00001", on_exceed="block")], ledger=ledger, fake_clock=True):
    openai.OpenAI(api_key="k", base_url=url, max_retries=0).chat.completions.create(
        model="gpt-4o-mini", max_tokens=10, messages=[{"role": "user", "content": "hello"}])
"""


def test_a_killed_process_frees_what_it_held(client: openai.OpenAI, server: EmbeddedServer, tmp_path: Path) -> None:
    """After ``kill -9`` in the midst of a call its money is held for the lease, and free afterwards."""
    ledger = str(tmp_path / "ledger.db")
    server.script(Reply(text="late", delay=60))
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, ledger])
    wait_for("request", lambda: server.requests)
    process.send_signal(signal.SIGKILL)
    process.wait()
    budget = tp.Budget("b", "0.00001", on_exceed="block")
    with capture(budgets=[budget], ledger=ledger, fake_clock=True) as captured:
        assert captured.clock is not None
        spent, reserved = standing(captured)
        assert (Decimal(0), True) == (spent, reserved > 0)
        small: Any = {"max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
        captured.clock.advance(599)
        with pytest.raises(tp.BudgetExceededError, match="reserved of"):
            ask(client, **small)
        captured.clock.advance(2)
        ask(client, **small)
        assert standing(captured)[1] == 0


def test_a_call_longer_than_the_lease_is_settled(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A stream that outlives its lease is charged when it ends, in the window in which it began."""
    with capture(
        budgets=[tp.Budget("b", "0.01", window="hour", on_exceed="block")], ledger="memory", fake_clock=True
    ) as captured:
        assert captured.clock is not None
        script(server, 1)
        began = captured.handle.parts.spending.limits()[0].window_at(1_700_000_000.0)  # type: ignore[union-attr]
        stream = ask(client, stream=True, stream_options={"include_usage": True})
        captured.clock.advance(7200)
        assert standing(captured) == (0, 0)
        for _ in stream:
            pass
        assert standing(captured) == (0, 0)
        ledger = captured.handle.parts.ledger
        assert ledger is not None
        assert to_pico(COST) == ledger.standings([("b|", began.key)], 1_700_007_200.0)[0].spent


def test_an_abandoned_stream_is_charged_as_reserved(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A stream that nobody reads to its end has cost something: what was held for it."""
    with capture(budgets=[BLOCKING], ledger="memory") as captured:
        script(server, 1)
        stream = ask(client, stream=True)
        next(stream)
        reserved = standing(captured)[1]
        assert reserved > COST
        del stream
        gc.collect()
        assert (reserved, Decimal(0)) == standing(captured)


async def test_a_cancelled_call_is_charged_as_reserved(aclient: openai.AsyncOpenAI, server: EmbeddedServer) -> None:
    """A call whose answer nobody waited for may have been billed."""
    with capture(budgets=[BLOCKING], ledger="memory") as captured:
        server.script(Reply(text="late", delay=30))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await aclient.chat.completions.create(model="gpt-4o-mini", max_tokens=50, messages=MESSAGES)
        spent, reserved = standing(captured)
    assert spent > COST
    assert reserved == 0


def test_a_call_that_never_arrives_costs_nothing() -> None:
    """Where nobody listens nothing is charged, and nothing stays reserved."""
    with (
        capture(budgets=[BLOCKING], ledger="memory") as captured,
        openai.OpenAI(api_key="k", base_url="http://127.0.0.1:1/v1", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIConnectionError):
            ask(client)
        assert standing(captured) == (0, 0)


def test_a_forked_child_spends_from_the_same_budget(
    client: openai.OpenAI, server: EmbeddedServer, tmp_path: Path
) -> None:
    """A child that was forked with the ledger open is held to the same limit, and its cost is in it."""
    with capture(budgets=[BLOCKING], ledger=str(tmp_path / "ledger.db")) as captured:
        script(server, 3)
        ask(client)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with openai.OpenAI(api_key="k", base_url=server.url, max_retries=0) as another:
                    ask(another)
                    status = 0 if standing(captured) == (COST * 2, 0) else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        ask(client)
        assert (COST * 3, Decimal(0)) == standing(captured)


# --- an absent ledger ---------------------------------------------------------------------------


class Away:
    """A ledger in memory that can be away."""

    def __init__(self) -> None:
        self.inner: Any = open_ledger("memory")
        self.away = True

    def close(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise tp.LedgerError("gone")
            return getattr(self.inner, name)(*args, **kwargs)

        return call


def without_pause(ledger: Away, captured: Captured) -> None:
    """Ask the ledger itself, not the circuit before it, which waits half a second before it asks again."""
    spending = captured.handle.parts.spending
    assert spending is not None
    spending.ledger = spending._backlog._ledger = ledger  # type: ignore[assignment]


def test_what_waited_is_settled_a_few_at_a_time(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """Costs from the time without a ledger come into it with the calls after it, and thresholds are told then."""
    ledger = Away()
    with capture(budgets=[tp.Budget("b", COST * 40, soft_ratio=0.5)], ledger=ledger) as captured:
        without_pause(ledger, captured)
        script(server, 31)
        for _ in range(30):
            ask(client)
        assert told(captured) == []
        ledger.away = False
        ask(client)
        assert standing(captured)[0] == COST * 31  # the call made up for twenty, the answer for the others
        assert len(told(captured)) == 1


def test_more_than_can_wait_is_said_once(
    client: openai.OpenAI, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is bounded; costs beyond that are lost to the budget, which is counted and logged once."""
    monkeypatch.setattr(_backlog, "_MOST", 2)
    ledger = Away()
    with capture(budgets=[tp.Budget("b", 1)], ledger=ledger) as captured:
        without_pause(ledger, captured)
        script(server, 5)
        for _ in range(5):
            ask(client)
        assert _guard.swallowed()["ledger_backlog"] == 3
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert 2 == len(said)  # when it was full, and at the end
    assert "will be in no budget" in said[0]
    assert "the latest 2 calls" in said[1]


def test_a_ledger_of_ones_own_that_fails_costs_no_call(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """An error of a ledger that is not for lack of a connection is counted as ours, and the call goes."""

    class Wrong(Away):
        def __getattr__(self, name: str) -> Any:
            def call(*_: Any) -> Any:
                raise ZeroDivisionError

            return call

    with capture(budgets=[BLOCKING], ledger=Wrong(), reraise=False):
        script(server, 1)
        ask(client)
        assert _guard.swallowed()["budget"] >= 1
    assert len(server.requests) == 1


def test_a_ledger_that_cannot_count_refusals_refuses(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """That a refusal could not be counted is our error, and no reason to let the call go."""

    class Miscounts(Away):
        def settle(self, *_: Any) -> Any:
            raise ZeroDivisionError

    ledger = Miscounts()
    ledger.away = False
    with capture(budgets=[tp.Budget("b", "0.000001", on_exceed="block")], ledger=ledger, reraise=False):
        before = _guard.swallowed().get("budget", 0)
        with pytest.raises(tp.BudgetExceededError):
            ask(client)
        assert before + 1 == _guard.swallowed()["budget"]
    assert not server.requests


# --- who is charged -----------------------------------------------------------------------------


def test_every_budget_that_speaks_of_a_call_is_charged(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A call in an agent in a workflow counts for both; of agents the innermost counts."""
    scopes: dict[str, dict[str, str]] = {
        "all": {},
        "flow": {"workflow": "triage"},
        "outer": {"agent": "Planner"},
        "inner": {"agent": "Helper", "workflow": "triage"},
        "other": {"model": "gpt-4o"},
    }

    @tp.observed_agent(name="Helper")
    def helper() -> None:
        ask(client)

    @tp.observed_agent(name="Planner")
    def planner() -> None:
        ask(client)
        helper()

    with capture(budgets=[tp.Budget(n, 1, scope=s) for n, s in scopes.items()], ledger="memory") as captured:
        script(server, 2)
        with tp.workflow("triage"):
            planner()
        spent = {status.name: status.spent_usd for status in captured.handle.budgets()}
    assert {"all": COST * 2, "flow": COST * 2, "outer": COST, "inner": COST} == spent


def test_one_that_blocks_holds_for_all(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """Of several budgets the one that has not enough left refuses the call; nothing stays reserved in the others."""
    narrow = tp.Budget("narrow", "0.000001", scope={"agent": "Planner"}, on_exceed="block")

    @tp.observed_agent(name="Planner")
    def planner() -> None:
        ask(client)

    with capture(budgets=[BLOCKING, narrow], ledger="memory") as captured:
        with pytest.raises(tp.BudgetExceededError, match="'narrow'"):
            planner()
        wide = captured.handle.budgets()[0]
    assert ("b", Decimal(0), Decimal(0)) == (wide.name, wide.spent_usd, wide.reserved_usd)
    assert not server.requests


def test_any_of_a_runs_experiments_counts(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A run in two experiments is charged to the budgets of both, and to one account for each with ``*``."""
    second = tp.Budget("second", 1, scope={"experiment": "tone"})
    each = tp.Budget("each", 1, scope={"experiment": "*", "variant": "*"})
    with capture(budgets=[second, each], ledger="memory") as captured:
        script(server, 2)
        ask(client)
        with tp.experiment("length", ["a", "b"], unit=1) as a, tp.experiment("tone", ["c", "d"], unit=1) as b:
            ask(client)
        spent = {(status.name, status.account): status.spent_usd for status in captured.handle.budgets()}
    assert {
        ("second", "experiment=tone"): COST,
        ("each", f"experiment=length|variant={a}"): COST,
        ("each", f"experiment=tone|variant={b}"): COST,
    } == spent


def test_accounts_are_bounded(
    client: openai.OpenAI,
    server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Values beyond the bound share one account, which is said once; those before it keep theirs."""
    monkeypatch.setattr(_budget_accounts, "_MOST_ACCOUNTS", 2)
    with capture(budgets=[tp.Budget("b", 1, scope={"user": "*"})], ledger="memory") as captured:
        script(server, 6)
        for user in ("a", "b", "c", "d", "a", "e"):
            with tp.workflow("w", user_id=user):
                ask(client)
        spent = {status.account: status.spent_usd for status in captured.handle.budgets()}
    assert {"user=a": COST * 2, "user=b": COST, "*": COST * 3} == spent
    assert 1 == sum("further values share one" in record.message for record in caplog.records)


def test_values_cannot_pass_for_others(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """Whatever a value is, it has an account of its own, with a name of bounded length."""
    scope = {"agent": "*", "user": "*"}
    users = ["z", "y|user=z", "%7C", "|", "x" * 10_000, "x" * 10_000 + "y"]
    with capture(budgets=[tp.Budget("b", 1, scope=scope)], ledger="memory") as captured:
        script(server, len(users) + 1)
        for agent, user in [("x|user=y", "z"), *(("x", user) for user in users)]:

            @tp.observed_agent(name=agent)
            def run() -> None:
                ask(client)

            with tp.workflow("w", user_id=user):
                run()
        found = captured.handle.budgets()
    assert [COST] * (len(users) + 1) == [status.spent_usd for status in found]
    assert max(len(status.account) for status in found) < 300


def test_each_budget_has_its_say_about_unknown_prices(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A budget that refuses models without a price does so beside one that does not mind, and says what was spent."""
    strict = tp.Budget("strict", 1, on_unpriced="block")
    script(server, 1)
    with capture(budgets=[tp.Budget("easy", 1), strict], ledger="memory"):
        ask(client)
        with pytest.raises(tp.BudgetExceededError, match="'strict'") as refused:
            ask(client, model="nobody-knows")
    assert (1, COST) == (len(server.requests), refused.value.spent_usd)


def test_calls_that_are_told_are_charged() -> None:
    """``track_llm_metrics`` charges the budgets like a patched call, to the run's user and the named agent."""
    planner = tp.Budget("ann", 1, scope={"user": "ann", "agent": "Planner"})
    answer = {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 100, "completion_tokens": 50}}
    with capture(ledger="memory", budgets=[tp.Budget("all", COST), planner]) as captured:
        with tp.workflow("w", user_id="ann"):
            tp.track_llm_metrics(answer, "Planner", captured.metrics)
        tp.track_llm_metrics(answer, "Planner", captured.metrics)
        assert [COST * 2, COST] == [status.spent_usd for status in captured.handle.budgets()]
        assert [f"the day's ${COST:f} is spent"] == told(captured)


# --- saying so ----------------------------------------------------------------------------------


def test_a_threshold_is_told_once_in_all_processes(
    client: openai.OpenAI, server: EmbeddedServer, tmp_path: Path
) -> None:
    """Of all that share a ledger the one whose charge went over says so, also where they come and go."""
    reasons = []
    for _ in range(6):
        budget = tp.Budget("b", COST * 4, soft_ratio=0.5)
        with capture(budgets=[budget], ledger=str(tmp_path / "ledger.db")) as captured:
            script(server, 1)
            ask(client)
            reasons.append(told(captured))
    said = "the day's $0.00018 is spent"
    assert [[], [f"50% of {said}"], [], [said], [], []] == reasons


def test_each_account_and_window_is_told_of(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """With a new window, and for another user, the threshold is told anew, on the call's span and in the metric."""
    budget = tp.Budget("b", COST, window="hour", scope={"user": "*"})
    with capture(budgets=[budget], ledger="memory", fake_clock=True) as captured:
        assert captured.clock is not None
        script(server, 8)
        for _ in range(2):
            for user in ("ann", "bob"):
                for _ in range(2):
                    with tp.workflow("w", user_id=user):
                        ask(client)
            captured.clock.advance(3600)
        lines = [line for line in captured.logs if line["event_name"] == "cost.threshold_exceeded"]
        spans = [span for span in captured.spans if span.events]
    assert 4 == len(lines) == len(spans)
    assert {"cost.threshold_exceeded"} == {event.name for span in spans for event in span.events}
    assert {("error", "b", "warn")} == {(line["category"], line["policy"], line["decision"]) for line in lines}


def test_gauges_on_a_real_exposition(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """``/metrics`` has spent and limit of each budget; of accounts the one that has spent most; gone afterwards."""
    each = tp.Budget("each", "0.5", window="hour", scope={"user": "*"})
    with capture(budgets=[tp.Budget("all", 2, window="total"), each], ledger="memory") as captured:
        script(server, 3)
        for user in ("ann", "bob", "bob"):
            with tp.workflow("w", user_id=user):
                ask(client)
        found = {
            (sample.name, sample.labels["budget"], sample.labels["window"]): sample.value
            for family in text_string_to_metric_families(captured.prometheus_text)
            for sample in family.samples
            if sample.name in {semconv.M_BUDGET_SPENT, semconv.M_BUDGET_LIMIT}
        }
        registry = captured.metrics.registry
    assert {
        (semconv.M_BUDGET_SPENT, "all", "total"): float(COST * 3),
        (semconv.M_BUDGET_SPENT, "each", "hour"): float(COST * 2),
        (semconv.M_BUDGET_LIMIT, "all", "total"): 2.0,
        (semconv.M_BUDGET_LIMIT, "each", "hour"): 0.5,
    } == found
    assert [] == [family.name for family in registry.collect() if family.name.startswith("taskpilot_budget")]


def test_unknown_spending_is_no_sample(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """While the ledger is away the limit is served, and nothing is said to be spent."""
    with capture(budgets=[BLOCKING], ledger=Away()) as captured:
        text = captured.prometheus_text
        with pytest.raises(tp.LedgerError):
            captured.handle.budgets()
    assert 'taskpilot_budget_limit_usd{budget="b",window="day"} 0.01' in text
    assert "taskpilot_budget_spent_usd{" not in text


# --- many at once -------------------------------------------------------------------------------


def test_accounts_of_users_do_not_mix(server: EmbeddedServer) -> None:
    """Two hundred threads of ten users: each user's calls, and no others, are in the user's account."""
    budget = tp.Budget("b", COST * 15, window="total", scope={"user": "*"}, on_exceed="block")
    script(server, 200)
    sent: list[str] = []
    with (
        capture(budgets=[budget], ledger="memory") as captured,
        openai.OpenAI(api_key="k", base_url=server.url, max_retries=0) as client,
    ):

        def work(user: str) -> None:
            try:
                with tp.workflow("w", user_id=user):
                    ask(client)
            except tp.BudgetExceededError:
                return
            sent.append(user)

        threads = [threading.Thread(target=work, args=(f"u{number % 10}",)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = {status.account: (status.spent_usd, status.reserved_usd) for status in captured.handle.budgets()}
    assert {f"user={user}": (COST * sent.count(user), Decimal(0)) for user in set(sent)} == spent
    assert all(8 <= sent.count(user) <= 15 for user in set(sent))


# --- definitions --------------------------------------------------------------------------------


def test_a_budget_can_be_handed_to_a_worker() -> None:
    """A budget can be pickled, hashed and compared, and so can the error that it raises."""
    budget = tp.Budget("b", "0.5", scope={"user": "*"}, on_exceed="block")
    assert budget == pickle.loads(pickle.dumps(budget))
    assert 1 == len({budget, pickle.loads(pickle.dumps(budget))})
    error = tp.BudgetExceededError("m", budget="b", spent_usd=Decimal(1), limit_usd=Decimal(2), resets_at=None)
    again = pickle.loads(pickle.dumps(error))
    assert ("m", "b", Decimal(2)) == (str(again), again.budget, again.limit_usd)


@pytest.mark.parametrize("where", ["memory", "ledger.db"])
def test_a_user_that_no_file_can_hold_is_held_too(
    client: openai.OpenAI, server: EmbeddedServer, tmp_path: Path, where: str
) -> None:
    """A user id that is no proper Unicode has an account like any other: nobody gets by a budget with one."""
    budget = tp.Budget("b", "0.000001", scope={"user": "*"}, on_exceed="block")
    place = where if where == "memory" else str(tmp_path / where)
    with (
        capture(budgets=[budget], ledger=place),
        tp.workflow("w", user_id="u\ud800"),
        pytest.raises(tp.BudgetExceededError),
    ):
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}])
    assert [] == server.requests


@pytest.mark.parametrize("name", ["a|b", "x" * 101, "  ", "a\ud800", 3])
def test_a_name_that_accounts_cannot_have_is_refused(name: Any) -> None:
    """Names of budgets are short, and hold nothing that separates the parts of an account's name."""
    with pytest.raises(tp.ConfigurationError, match=r"Budget\(name=…\)"):
        tp.Budget(name, 1)


def test_nothing_is_opened_where_nothing_is_observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched off, budgets are accepted and hold nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with tp.instrument(enabled=False, budgets=[BLOCKING]) as handle:
        handle.add_budget(tp.Budget("c", 1))
        assert () == handle.budgets()
    assert [] == list(tmp_path.iterdir())
