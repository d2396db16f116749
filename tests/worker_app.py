"""The application that test_workers.py serves with gunicorn and uvicorn: one agent, asked for over HTTP."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

import openai
from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import taskpilot_instrument as tp
from taskpilot_instrument.web.app import create_app

VISITS = Counter("shop_visits", "Of the application itself.")
#: Whoever loads it first: a worker, or with gunicorn's preload_app its master.
handle = tp.instrument(
    logs="off",
    ledger=os.environ.get("WORKER_LEDGER"),
    metrics_port=int(os.environ["WORKER_METRICS"]) if "WORKER_METRICS" in os.environ else None,
)
_clients: dict[int, openai.OpenAI] = {}


def _client() -> openai.OpenAI:
    if os.getpid() not in _clients:
        _clients[os.getpid()] = openai.OpenAI(
            api_key="sk-test", base_url=os.environ["WORKER_OPENAI"], max_retries=0
        )  # fmt: skip
    return _clients[os.getpid()]


@tp.observed_agent(name="ShopAgent")
def _serve(fails: bool) -> None:
    _client().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}])
    handle.metrics.increment_counter("mine")
    handle.metrics.increment_counter("llm.quality.user_confirmed_correct")
    if fails:
        raise ValueError("no")


def _waste() -> None:
    """Make a call that is sent twice, and fails once the model has worked for it."""
    _client().with_options(max_retries=1).responses.create(model="gpt-4o-mini", input="hello")


def run(query: dict[str, str]) -> dict[str, Any]:
    """Do one run; tell who did it."""
    VISITS.inc()
    if "wastes" in query:
        _waste()
        return {"pid": os.getpid()}
    try:
        _serve("fails" in query)
    except ValueError:
        pass
    return {"pid": os.getpid()}


def signals(query: dict[str, str]) -> dict[str, Any]:
    """Tell the golden signals and what else this worker answers."""
    found = handle.golden_signals(**query)
    return {
        "pid": os.getpid(),
        "signals": found.values,
        "sample": [
            found.runs, found.successes, str(found.sample.spent_usd.normalize()), found.sample.calls,
            found.sample.priced, found.sample.unpriced, found.feedback, found.sample.timed,
        ],
        "names": {name: handle.metrics.get_counter(name) for name in ("workflow.runs", "llm.cost.total")},
        "models": {each.model: each.calls for each in handle.compare_models().models},
        "waste": {agent: [each.retries, each.tokens, str(each.usd)] for agent, each in handle.waste(**query).items()},
        "serves": handle.metrics_url is not None,
        "recorded": handle.health().calls_recorded,
    }  # fmt: skip


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For gunicorn's workers."""
    from prometheus_client import make_wsgi_app

    if environ["PATH_INFO"] == "/metrics":
        return make_wsgi_app(handle.metrics.scraped)(environ, start_response)
    query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    told = run(query) if environ["PATH_INFO"] == "/run" else signals(query)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]


async def _run(request: Request) -> JSONResponse:
    return JSONResponse(await run_in_threadpool(run, dict(request.query_params)))


async def _signals(request: Request) -> JSONResponse:
    return JSONResponse(await run_in_threadpool(signals, dict(request.query_params)))


asgi = Starlette(routes=[Route("/run", _run), Route("/signals", _signals), Mount("/observe", create_app())])
