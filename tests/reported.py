"""Runs of an instrumented program at times of a test's choosing: what reports are made from."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import openai

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, FakeClock, capture
from taskpilot_instrument.usage import TokenUsage

#: What a call of gpt-4o-mini with the usage of :meth:`Program.run` costs.
CALL_USD = "0.0000525"


def flagged(_: tp.Subject) -> tp.Flag:
    """Flag everything."""
    return tp.Flag("a secret")


@tp.observed_tool
def leak(text: str) -> str:
    """Do what the policy ``no-secrets`` flags."""
    return text


POLICIES = (tp.Policy(flagged, name="no-secrets", tools=["leak"]), tp.Keywords(["never said"]))


class Program:
    """A program whose time passes only when told.

    :param captured: its instrumentation.
    """

    def __init__(self, captured: Captured, clock: FakeClock, server: EmbeddedServer) -> None:
        self.captured = captured
        self._clock = clock
        self._server = server
        self._seconds = 0.0
        self._runs = 0
        hooks = {"request": [lambda _: clock.advance(self._seconds)]}
        self._client = openai.OpenAI(
            api_key="sk-test", base_url=server.url, max_retries=0,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks),
        )  # fmt: skip

    def close(self) -> None:
        """Close its client."""
        self._client.close()

    def wait_until(self, moment: datetime) -> None:
        """Let time pass."""
        moment_us = (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
        self._clock.advance((moment_us * 1000 - self._clock.clock.epoch_ns()) / 1e9)

    def run(
        self,
        *,
        seconds: float = 1.0,
        fails: bool = False,
        wastes: bool = False,
        correct: bool | None = None,
        violations: int = 0,
        workflow: str = "triage",
        agent: str = "PlannerAgent",
        model: str = "gpt-4o-mini",
        usage: tuple[int, int] = (150, 50),
    ) -> None:
        """Make one run with one call.

        :param seconds: that the call takes.
        :param fails: the call is refused, and the run ends with its error.
        :param wastes: then another call is made, sent twice, which fails once the model has worked for it.
        :param correct: what the user says of it, at once.
        """
        self._runs += 1
        self._seconds = seconds
        name = f"req-{self._runs}"
        self._server.script(Reply.error(400) if fails else Reply("done", usage=TokenUsage(*usage)))
        if wastes:
            again = Reply.error(429, headers={"retry-after-ms": "1"})
            self._server.script(again, Reply(failure="no", usage=TokenUsage(*usage)))

        @tp.observed_agent(name=agent)
        def work(text: str) -> None:
            for _ in range(violations):
                leak(text)
            self._client.chat.completions.create(model=model, messages=[{"role": "user", "content": "go"}])
            if wastes:
                self._client.with_options(max_retries=1).responses.create(model=model, input="go")

        try:
            with tp.workflow(workflow, request_id=name):
                work("go")
        except openai.APIError:
            pass
        if correct is not None:
            self.captured.handle.record_feedback(correct, request_id=name)


@contextmanager
def program(start: datetime, **settings: Any) -> Iterator[Program]:
    """Run a program from a moment on; what it recorded is in its ledger when the block is left."""
    clock = FakeClock(start.timestamp())
    with (
        EmbeddedServer() as server,
        capture(clock=clock.clock, policies=POLICIES, **settings) as captured,
        closing(Program(captured, clock, server)) as made,
    ):
        yield made
