"""``taskpilot-instrument budgets``: what is over, what refuses calls and what goes on, from a page on a real socket."""

import json
import re
from decimal import Decimal

import openai
import pytest
from backends import RedisServer

import taskpilot_instrument as tp
from taskpilot_instrument.cli import main
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import capture
from taskpilot_instrument.web import serve

#: What one call costs: 100 input and 50 output tokens of gpt-4o-mini.
COST = Decimal("0.000045")
USAGE = tp.TokenUsage(100, 50)


def ask(client: openai.OpenAI, server: EmbeddedServer, user: str) -> None:
    """Make one call of known cost for a user."""
    server.script(Reply("ok", usage=USAGE))
    with tp.workflow("w", user_id=user):
        client.chat.completions.create(
            model="gpt-4o-mini", max_tokens=50, messages=[{"role": "user", "content": "x" * 400}]
        )


def test_a_budget_that_refuses_is_seen(
    client: openai.OpenAI, server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget that refuses calls below its limit is exit status 1, the first line, and says what it refused."""
    budgets = [
        tp.Budget("all", 1, window="total"),
        tp.Budget("each", COST * 2, scope={"user": "*"}, on_exceed="block", soft_ratio=0.5),
    ]
    with capture(budgets=budgets, ledger="memory") as captured, serve(0, handle=captured.handle) as page:
        ask(client, server, "u-1")
        assert 0 == main(["budgets", "--url", page.url])
        head, each, whole = capsys.readouterr().out.splitlines()
        assert ["each", "user=u-1", "near", "50.00"] == each.split()[:4]
        assert ["all", "–", "well"] == whole.split()[:3]
        assert "soft mark" in head
        for _ in range(3):
            with pytest.raises(tp.BudgetExceededError):
                ask(client, server, "u-1")
        assert 1 == main(["budgets", "--url", page.url])
        _, each, _, said = capsys.readouterr().out.splitlines()
        assert re.search(
            r"^each +user=u-1 +refusing +50.00 % +\$0.0000450 +\$0.0000 +\$0.000090 +day +50% +block +3 ", each
        )
        assert re.fullmatch(r"each \(user=u-1\) refuses calls .*: 3 calls refused in this day.", said)
        assert 1 == main(["budgets", "--url", page.url, "--format", "json"])
        assert [3, 0] == [one["refused_calls"] for one in json.loads(capsys.readouterr().out)]


def test_a_budget_that_is_over_is_named(
    client: openai.OpenAI, server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget over its limit is named, and whether calls go on is said."""
    budgets = [tp.Budget("soft", COST, window="total"), tp.Budget("hard", COST * 3, on_exceed="block")]
    with capture(budgets=budgets, ledger="memory") as captured, serve(0, handle=captured.handle) as page:
        ask(client, server, "u-1")
        assert 1 == main(["budgets", "--url", page.url])
    out = capsys.readouterr().out
    assert out.endswith("soft is over its limit, and lets calls go on, as on_exceed is warn.\n")
    assert [["soft", "over"], ["hard", "well"]] == [
        [line.split()[0], line.split()[2]] for line in out.splitlines()[1:3]
    ]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_what_another_process_refused(
    kind: str, client: openai.OpenAI, server: EmbeddedServer, request: pytest.FixtureRequest
) -> None:
    """Refused calls are in the ledger: whoever shares it sees them, also of a user who was never charged."""
    redis: RedisServer | None = request.getfixturevalue("redis") if kind == "redis" else None
    ledger = redis.url if redis else str(request.getfixturevalue("tmp_path") / "ledger.db")
    budget = tp.Budget("refusing", COST, scope={"user": "*"}, on_exceed="block", on_unpriced="block")
    with capture(budgets=[budget], ledger=ledger):
        for _ in range(250):
            with pytest.raises(tp.BudgetExceededError):
                ask(client, server, "u-1")
    with capture(budgets=[budget], ledger=ledger) as captured:
        (status,) = captured.handle.budgets()
    assert ("user=u-1", 250, 0) == (status.account, status.refused_calls, status.spent_usd)
    assert [] == server.requests
