"""A real run of the demo's workload, its metrics served for a Prometheus to scrape."""

import asyncio
import runpy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import openai
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

import taskpilot_instrument as tp
from taskpilot_instrument import _guard
from taskpilot_instrument.embedded import EmbeddedServer, Received, Reply
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.usage import TokenUsage

EXAMPLE: Final = Path(__file__).resolve().parent.parent / "examples" / "taskpilot_workflow.py"


class Workload:
    """The example's goals, to be worked off as often as a test likes.

    :param handle: the instrumentation that sees it.
    """

    def __init__(self, handle: Instrumentation) -> None:
        self.handle = handle
        self.url = ""
        self._costly = False
        self._program = runpy.run_path(str(EXAMPLE))

    @property
    def target(self) -> str:
        """Host and port that the metrics are served on."""
        assert self.handle.metrics_url is not None
        return self.handle.metrics_url.removeprefix("http://").removesuffix("/metrics")

    def work_off(self, *, costly: bool = False) -> None:
        """Work all goals off once.

        :param costly: let each answer take a million tokens.
        """
        self._costly = costly
        asyncio.run(self._work_off())

    async def _work_off(self) -> None:
        async with openai.AsyncOpenAI(api_key="none", base_url=self.url) as client:
            await self._program["work_off"](self._program["GOALS"], client, self.handle.metrics)

    def do_the_rest(self) -> None:
        """Do once what the example does not: fail at the model, hit limits, be refused, meet guardrails, a bug."""
        with openai.OpenAI(api_key="none", base_url=self.url, max_retries=0) as client:
            for model in ("unknown-model", "broken-model", "short-model"):
                with suppress(openai.BadRequestError):
                    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "misuse"}])
            with suppress(tp.BudgetExceededError):
                client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "too dear"}])
        self.waste()
        metrics = self.handle.metrics
        for number in range(self.handle.settings.label_cap + 1):
            metrics.record_guardrail_block("PlannerAgent", f"guardrail-{number}", "input")
        _guard.policy.reraise, before = False, _guard.policy.reraise
        _guard.swallow("test", ValueError("made up"))
        _guard.policy.reraise = before

    def waste(self) -> None:
        """Make one call that fails once the model has worked for it."""
        with openai.OpenAI(api_key="none", base_url=self.url) as client:
            client.responses.create(model="gpt-4o-mini", input="misuse")

    def answer(self, request: Received) -> Reply:
        """Answer as the example's model does, or as costly, unknown, broken or short."""
        model = request.payload["model"]
        if request.endpoint == "/responses":
            return Reply(failure="No.", usage=TokenUsage(10, 10))
        if model == "broken-model":
            return Reply.error(400, "No such thing.")
        if model == "short-model":
            return Reply("cut off", usage=TokenUsage(10, 10), finish_reason="length")
        if model == "unknown-model":
            return Reply("priceless", usage=TokenUsage(10, 10))
        reply: Reply = self._program["answer"](request)
        return replace(reply, usage=TokenUsage(5_000_000, 1_000)) if self._costly and reply.usage else reply


@contextmanager
def workload() -> Iterator[Workload]:
    """Observe the example against an embedded server, on a registry of its own, until the block is left."""
    provider = TracerProvider(shutdown_on_exit=False)
    dear = tp.Budget("dear models", "0.001", scope={"model": "gpt-4o"}, on_exceed="block")
    settings: dict[str, Any] = {
        "registry": CollectorRegistry(), "tracer_provider": provider, "label_cap": 30, "ledger": "memory",
        "budgets": [tp.Budget("all", 10_000, window="month"), dear],
    }  # fmt: skip
    with tp.instrument(metrics_port=0, logs="off", **settings) as handle:
        made = Workload(handle)
        with EmbeddedServer(made.answer) as server:
            made.url = server.url
            yield made
    provider.shutdown()
