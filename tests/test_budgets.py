"""Budgets hold: what may not be spent is not sent, and what was spent is in the ledger to the last cent."""

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from backends import RedisServer

import taskpilot_instrument as tp
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.sinks.ledger import Claim, open_ledger, to_pico
from taskpilot_instrument.testing import capture
from taskpilot_instrument.usage import TokenUsage

#: What one call costs: 100 input and 50 output tokens of gpt-4o-mini.
COST = Decimal("0.000045")
USAGE = TokenUsage(100, 50)
#: More than a hundred tokens, by any estimate from above.
MESSAGES: Any = [{"role": "user", "content": "x" * 400}]


def ask(client: openai.OpenAI, **more: Any) -> Any:
    """Make one call whose worst case is somewhat above its cost."""
    given: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": 50, "messages": MESSAGES}
    return client.chat.completions.create(**given | more)


def script(server: EmbeddedServer, calls: int) -> None:
    """Let the server answer with a known usage."""
    server.script(*[Reply(text="ok", usage=USAGE)] * calls)


# --- refusing -----------------------------------------------------------------------------------


def test_a_call_beyond_the_budget_is_never_sent(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """The call that might overspend is refused before any request, and the error, span, log and metric say why."""
    budget = Budget("daily", COST * 2, on_exceed="block")
    with capture(budgets=[budget], ledger="memory", fake_clock=True) as captured:
        script(server, 2)
        ask(client)
        with pytest.raises(tp.BudgetExceededError) as caught:
            ask(client)
            ask(client)
        text, spans, lines = captured.prometheus_text, captured.spans, captured.logs
    sent = len(server.requests)
    assert sent in {1, 2}
    error = caught.value
    assert ("daily", Decimal("0.00009")) == (error.budget, error.limit_usd)
    assert error.spent_usd == COST * sent
    assert error.resets_at is not None
    assert error.resets_at.isoformat() in str(error)
    assert dict(spans[-1].attributes or {})["outcome"] == "blocked"
    assert [event.name for event in spans[-1].events] == ["budget.blocked"]
    (line,) = [line for line in lines if line["event_name"] == "budget.blocked"]
    assert ("daily", "block", "decision") == (line["policy"], line["decision"], line["category"])
    assert line["trace_id"] == f"{spans[-1].context.trace_id:032x}"  # type: ignore[union-attr]
    assert 'taskpilot_budget_blocked_calls_total{budget="daily",window="day"} 1.0' in text
    assert f'taskpilot_budget_spent_usd{{budget="daily",window="day"}} {float(COST * sent)}' in text
    assert 'taskpilot_budget_limit_usd{budget="daily",window="day"} 9e-05' in text


def test_a_refusal_says_what_was_assumed(client: openai.OpenAI) -> None:
    """Whose call sets no limit to its output is told how much was taken for it; else nothing was assumed."""
    asked: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    with capture(budgets=[Budget("b", "0.0001", on_exceed="block")], ledger="memory"):
        with pytest.raises(tp.BudgetExceededError, match=r"\(4096 output tokens assumed, as it sets no max_tokens\)"):
            client.chat.completions.create(**asked)
        with pytest.raises(tp.BudgetExceededError) as refused:
            client.chat.completions.create(**asked, max_tokens=4_000)
    assert "assumed" not in str(refused.value)


async def test_async_calls_and_streams_are_held_too(aclient: openai.AsyncOpenAI, server: EmbeddedServer) -> None:
    """The async client and streams reserve and settle like any call; a refused stream sends nothing."""
    with capture(budgets=[Budget("b", "0.01", on_exceed="block")], ledger="memory") as captured:
        script(server, 1)
        stream = await aclient.chat.completions.create(
            model="gpt-4o-mini", max_tokens=50, messages=[{"role": "user", "content": "x"}], stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        async for _ in stream:
            pass
        (status,) = captured.handle.budgets()
        assert (COST, Decimal(0)) == (status.spent_usd, status.reserved_usd)
        with pytest.raises(tp.BudgetExceededError):
            await aclient.chat.completions.create(
                model="gpt-4o-mini", max_tokens=100_000, messages=[{"role": "user", "content": "x"}], stream=True
            )
    assert len(server.requests) == 1


def test_warn_lets_the_call_go(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A budget that warns refuses nothing; it says once that the soft share, and once that the limit, is spent."""
    with capture(budgets=[Budget("b", COST * 2, soft_ratio=0.5)], ledger="memory") as captured:
        script(server, 5)
        for _ in range(5):
            ask(client)
        lines = [line for line in captured.logs if line["event_name"] == "cost.threshold_exceeded"]
        (status,) = captured.handle.budgets()
    assert ["50% of the day's $0.00009 is spent", "the day's $0.00009 is spent"] == [line["reason"] for line in lines]
    assert status.spent_usd == COST * 5
    assert status.ratio == 2.5


def test_scopes_have_accounts_of_their_own(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """``*`` gives each user an account; a call outside of the scope is nobody's business."""
    each = Budget("per-user", COST * 2, scope={"user": "*"}, on_exceed="block")
    other = Budget("planner", "1", scope={"agent": "PlannerAgent", "model": "gpt-4o-mini"})
    with capture(budgets=[each, other], ledger="memory") as captured:
        script(server, 4)
        for user in ("ann", "bob"):
            with tp.workflow("w", user_id=user):
                ask(client)
        with pytest.raises(tp.BudgetExceededError, match="user=ann"), tp.workflow("w", user_id="ann"):
            for _ in range(2):
                ask(client)
        ask(client)
        spent = {(status.name, status.account): status.spent_usd for status in captured.handle.budgets()}
    assert {"per-user"} == {name for name, _ in spent}
    assert spent["per-user", "user=bob"] == COST


def test_what_was_refused_by_the_provider_costs_nothing(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A call that fails with a status settles with nothing; the reservation is free again."""
    with capture(budgets=[Budget("b", "0.01", on_exceed="block")], ledger="memory") as captured:
        server.script(Reply(status=400))
        with pytest.raises(openai.BadRequestError):
            ask(client)
        (status,) = captured.handle.budgets()
    assert (Decimal(0), Decimal(0)) == (status.spent_usd, status.reserved_usd)


def test_unknown_is_charged_as_reserved(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A stream that tells no usage is charged its worst case: unknown is not nothing."""
    with capture(budgets=[Budget("b", "0.01")], ledger="memory") as captured:
        for _ in ask(client, stream=True):
            pass
        (status,) = captured.handle.budgets()
    assert status.reserved_usd == 0
    assert status.spent_usd >= COST / 2


@pytest.mark.parametrize(("rule", "sent"), [("allow", 1), ("block", 0)])
def test_a_model_without_a_price(client: openai.OpenAI, server: EmbeddedServer, rule: Any, sent: int) -> None:
    """``on_unpriced`` decides whether a call goes whose cost nobody knows."""
    with capture(budgets=[Budget("b", "1", on_exceed="block", on_unpriced=rule)], ledger="memory"):
        refuses = pytest.raises(tp.BudgetExceededError, match="no price is known")
        with nullcontext() if sent else refuses:
            ask(client, model="my-own-model")
    assert sent == len(server.requests)


def test_budgets_can_be_added_later(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """``add_budget`` holds the next call; the budget's name has to be new."""
    with capture(ledger="memory") as captured:
        ask(client)
        assert captured.handle.budgets() == ()
        captured.handle.add_budget(Budget("late", "0.0000001", on_exceed="block"))
        with pytest.raises(tp.BudgetExceededError):
            ask(client)
        with pytest.raises(tp.ConfigurationError, match="two budgets named 'late'"):
            captured.handle.add_budget(Budget("late", 1))
    assert len(server.requests) == 1


# --- the ledger ---------------------------------------------------------------------------------


def test_a_crash_frees_after_the_lease() -> None:
    """What a dead process had reserved holds others up for ten minutes, and no longer."""
    ledger = open_ledger("memory")
    now = 1_700_000_000.0
    with capture(budgets=[Budget("b", "0.01", on_exceed="block")], ledger=ledger, fake_clock=True) as captured:
        assert captured.clock is not None
        ledger.reserve("dead", [Claim("b|", "2023-11-14", to_pico(Decimal("0.01")))], 600.0, now)
        assert captured.handle.budgets()[0].reserved_usd == Decimal("0.01")
        captured.clock.advance(601)
        assert captured.handle.budgets()[0].reserved_usd == 0


@pytest.mark.parametrize(("unavailable", "sent"), [("allow", 1), ("deny", 0)])
def test_the_ledger_is_away(client: openai.OpenAI, server: EmbeddedServer, unavailable: str, sent: int) -> None:
    """While the ledger cannot be reached the setting decides; what was spent meanwhile is settled when it is back."""
    inner = open_ledger("memory")

    class Away:
        away = True

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> Any:
                if self.away:
                    raise tp.LedgerError("gone")
                return getattr(inner, name)(*args)

            return call

        def reserve(self, *args: Any) -> Any:
            return self.__getattr__("reserve")(*args)

        def settle(self, *args: Any) -> Any:
            return self.__getattr__("settle")(*args)

        def standings(self, *args: Any) -> Any:
            return self.__getattr__("standings")(*args)

        def close(self) -> None:
            inner.close()

    ledger = Away()
    settings: dict[str, Any] = {"budgets": [Budget("b", "1", on_exceed="block")], "ledger_unavailable": unavailable}
    with capture(ledger=ledger, **settings) as captured:
        script(server, 2)
        if sent:
            ask(client)
        else:
            with pytest.raises(tp.BlockedError, match="ledger cannot be reached"):
                ask(client)
        assert sent == len(server.requests)
        ledger.away = False
        captured.handle.parts.spending.close()  # type: ignore[union-attr] # waits for the circuit to ask again
        spent = inner.standings([("b|", datetime.now(UTC).strftime("%Y-%m-%d"))], 0.0)[0].spent
    assert spent == to_pico(COST) * sent


# --- many at once -------------------------------------------------------------------------------

CALLERS = 200
#: Enough for sixty calls; what one call reserves at most beyond its cost.
LIMIT = COST * 60


def held_to(ledger: str) -> dict[str, Any]:
    """Return the settings of one budget; a call that a busy machine's ledger has no time for is refused too."""
    budget = Budget("b", LIMIT, window="total", on_exceed="block")
    return {"budgets": [budget], "ledger": ledger, "ledger_unavailable": "deny"}


def spend(url: str, ledger: str, calls: int) -> int:
    """Call until the budget refuses; return how many calls were sent."""
    sent = 0
    with (
        capture(**held_to(ledger)),
        openai.OpenAI(api_key="k", base_url=url, max_retries=0) as client,
    ):
        for _ in range(calls):
            sent += sent_by(client)
    return sent


def sent_by(client: openai.OpenAI) -> bool:
    """Make one call, again where the ledger had no time; tell whether it was sent."""
    while True:
        try:
            ask(client)
        except tp.BudgetExceededError:
            return False
        except tp.BlockedError:
            time.sleep(0.1)
        else:
            return True


def held(ledger: str, sent: int) -> None:
    """Assert that the budget was not overspent, and that every cent is in it."""
    opened = open_ledger(ledger)
    (standing,) = opened.standings([("b|", "total")], datetime.now(UTC).timestamp())
    opened.close()
    assert to_pico(COST) * sent == standing.spent
    assert standing.reserved == 0
    assert standing.spent <= to_pico(LIMIT)
    assert sent >= 40


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Name a ledger that processes can share: a file, a real Redis."""
    if request.param == "sqlite":
        yield str(tmp_path / "ledger.db")
        return
    redis = RedisServer(tmp_path)
    yield redis.url
    redis.stop()


def test_threads_do_not_overspend(server: EmbeddedServer, shared: str) -> None:
    """Two hundred threads at once stay within the budget; every cent spent is in it."""
    script(server, CALLERS)
    ledger, sent = shared, []
    with (
        capture(**held_to(ledger)),
        openai.OpenAI(api_key="k", base_url=server.url, max_retries=0) as client,
    ):

        def work() -> None:
            if sent_by(client):
                sent.append(1)

        threads = [threading.Thread(target=work) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    held(ledger, len(sent))


async def test_tasks_do_not_overspend(aclient: openai.AsyncOpenAI, server: EmbeddedServer, shared: str) -> None:
    """Two hundred tasks at once stay within the budget; every cent spent is in it."""
    script(server, CALLERS)

    async def work() -> int:
        while True:
            try:
                await aclient.chat.completions.create(model="gpt-4o-mini", max_tokens=50, messages=MESSAGES)
            except tp.BudgetExceededError:
                return 0
            except tp.BlockedError:
                await asyncio.sleep(0.1)
            else:
                return 1

    with capture(**held_to(shared)):
        sent = sum(await asyncio.gather(*[work() for _ in range(CALLERS)]))
    held(shared, sent)


def test_processes_do_not_overspend(server: EmbeddedServer, shared: str) -> None:
    """Eight processes on one ledger stay within the budget; every cent spent is in it."""
    script(server, CALLERS)
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        sent = pool.starmap(spend, [(server.url, shared, CALLERS // 8)] * 8)
    held(shared, sum(sent))


# --- windows ----------------------------------------------------------------------------------


def test_spending_begins_anew(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """With the next window there is money again."""
    with capture(
        budgets=[Budget("b", COST * 2, window="hour", on_exceed="block")], ledger="memory", fake_clock=True
    ) as captured:
        script(server, 10)
        with pytest.raises(tp.BudgetExceededError) as caught:
            for _ in range(3):
                ask(client)
        assert captured.clock is not None
        assert caught.value.resets_at is not None
        captured.clock.advance(3600)
        ask(client)


# --- definitions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "name"),
        ({"limit_usd": 0}, "limit_usd=0"),
        ({"limit_usd": "ten"}, "limit_usd='ten'"),
        ({"limit_usd": float("nan")}, "limit_usd=nan"),
        ({"limit_usd": True}, "limit_usd=True"),
        ({"limit_usd": 10_000_000}, "limit_usd=10000000"),
        ({"window": "dayly"}, "did you mean 'day'"),
        ({"timezone": "Europe/Atlantis"}, "timezone='Europe/Atlantis'"),
        ({"scope": {"agnet": "A"}}, "did you mean 'agent'"),
        ({"scope": {"agent": 3}}, "scope=3"),
        ({"scope": "agent"}, "scope='agent'"),
        ({"soft_ratio": 1.5}, "soft_ratio=1.5"),
        ({"on_exceed": "stop"}, "on_exceed='stop'"),
        ({"assumed_output_tokens": 0}, "assumed_output_tokens=0"),
    ],
)
def test_a_wrong_definition_names_its_field(fields: dict[str, Any], said: str) -> None:
    """A budget that cannot be is refused when it is written, with the field and what would be right."""
    with pytest.raises(tp.ConfigurationError, match=said):
        Budget(**{"name": "b", "limit_usd": 1} | fields)


def test_budgets_from_a_file(tmp_path: Path) -> None:
    """A TOML file gives the same budgets; money in it is exact however it is written."""
    path = tmp_path / "budgets.toml"
    path.write_text(
        '[[budget]]\nname = "a"\nlimit_usd = 0.1\nsoft_ratio = 0.5\n'
        '[[budget]]\nname = "b"\nlimit_usd = 25\nwindow = "month"\nscope = {agent = "PlannerAgent"}\n'
    )
    with capture(budgets=path, ledger="memory") as captured:
        found = {status.name: status.limit_usd for status in captured.handle.budgets()}
        limits = captured.handle.parts.spending.limits()  # type: ignore[union-attr]
    assert {"a": Decimal("0.1")} == found
    assert (Budget("a", "0.1", soft_ratio=0.5), Budget("b", 25, "month", scope={"agent": "PlannerAgent"})) == limits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[[budget]]\nname = 'a'\nlimit_usd = 1\nwindw = 'day'",
            r"\[\[budget\]\] 1: unknown key 'windw' \(did you mean",
        ),
        ("[[budget]]\nname = 'a'", r"1: limit_usd is missing"),
        ("[[budget]]\nname = 'a'\nlimit_usd = -1", "limit_usd='?-1"),
        ("[budget]\nname = 'a'", "two brackets"),
        ("[[budgets]]\n", "unknown key 'budgets'"),
        ("[[budget", "is no TOML"),
    ],
)
def test_a_wrong_file_names_the_place(tmp_path: Path, text: str, said: str) -> None:
    """A mistake in the file is told with file, table and key."""
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    with pytest.raises(tp.ConfigurationError, match=said), capture(budgets=path, ledger="memory"):
        pass


def test_a_file_without_budgets_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty file is no mistake, but whoever expects limits hears that there are none."""
    path = tmp_path / "budgets.toml"
    path.touch()
    with capture(budgets=path, ledger="memory"):
        pass
    assert f"{path} holds no [[budget]] table, so no budget is set" in caplog.text


def test_other_things_are_no_budgets() -> None:
    """Something else in the list is refused at start."""
    with pytest.raises(tp.ConfigurationError, match="takes a list of Budget"), capture(budgets=["b"], ledger="memory"):
        pass
    with (
        pytest.raises(tp.ConfigurationError, match="two budgets named"),
        capture(budgets=[Budget("b", 1), Budget("b", 2)], ledger="memory"),
    ):
        pass
