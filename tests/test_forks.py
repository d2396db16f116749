"""Processes that are made after ``instrument()``: nothing hangs, nothing is told twice, nothing is lost."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from fork_work import RUNS
from otlp_receiver import HttpReceiver, Receiver

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.usage import TokenUsage

SCRIPT: Final = Path(__file__).with_name("fork_work.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


def run(folder: Path, receiver: Receiver, ledger: str, method: str, children: int, **settings: str) -> dict[str, Any]:
    """Run the program to its end, and return what it told."""
    with EmbeddedServer(lambda _: Reply("yes", usage=TokenUsage(150, 50))) as server:
        environment = {
            **os.environ,
            "FORK_SERVER": server.url, "FORK_LEDGER": ledger, "FORK_OUT": str(folder / "told"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.origin, "OTEL_EXPORTER_OTLP_PROTOCOL": receiver.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "50", **settings,
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), method, str(children)],
            env=environment, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
    assert 0 == ended.returncode, ended.stderr[-4000:]
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert [0] * children == told["codes"], ended.stderr[-4000:]
    return told


def check(told: dict[str, Any], receiver: Receiver, children: int, folder: Path) -> None:
    """Hold what parent and children told against each other."""
    cost = Decimal("0.0000525")
    own = {
        "before": [0, 0, 0], "runs": RUNS, "cost": str((RUNS * cost).normalize()), "mine": 1, "scraped": RUNS,
        "delivered": True, "spans": RUNS * 4, "ring": RUNS, "errors": [], "open": 0,
    }  # fmt: skip
    assert [own] * children == told["children"]
    assert (told["done"], 7, True) == (told["runs"], told["mine"], told["delivered"])
    runs = told["done"] + RUNS * children
    assert runs * cost == sum(map(Decimal, told["spent"]))
    logged = [json.loads(line)["event_name"] for line in (folder / "told.log").read_text().splitlines()]
    assert (runs, runs) == (logged.count("workflow.finished"), logged.count("llm.called"))
    spans = receiver.spans
    assert len(spans) == len({span.span_id for span in spans})
    assert {
        "workflow.run": runs, "WorkerAgent.execute": runs, "look": runs, "chat gpt-4o-mini": runs,
    } == Counter(span.name for span in spans)  # fmt: skip


@pytest.mark.parametrize("ledger", ["sqlite", "redis"])
def test_forks_while_threads_record(ledger: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Children that are forked at any moment work at once, count from zero, and send their own spans and no others."""
    where = str(tmp_path / "ledger.db") if ledger == "sqlite" else request.getfixturevalue("redis").url
    with HttpReceiver() as receiver:
        told = run(tmp_path, receiver, where, "os", 30)
    check(told, receiver, 30, tmp_path)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method(method: str, tmp_path: Path) -> None:
    """Processes of multiprocessing work alike, whichever way they are made, and deliver at their end unasked."""
    with HttpReceiver() as receiver:
        told = run(tmp_path, receiver, str(tmp_path / "ledger.db"), method, 2)
    check(told, receiver, 2, tmp_path)


def test_forks_that_share_their_metrics(tmp_path: Path) -> None:
    """With a multiprocess directory parent and children add up, and each run is counted once."""
    (tmp_path / "metrics").mkdir()
    with HttpReceiver() as receiver:
        told = run(
            tmp_path, receiver, str(tmp_path / "ledger.db"), "os", 25,
            PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "metrics"),
        )  # fmt: skip
    runs = told["done"] + RUNS * 25
    assert (runs, runs, True) == (told["runs"], told["scraped"], told["delivered"])
    assert [RUNS * 4] * 25 == [child["spans"] for child in told["children"]]
    assert [0] * 25 == [child["open"] for child in told["children"]]


IN_THE_MIDST = """
import os, sys
import openai
import taskpilot_instrument as tp

handle = tp.instrument(logs="off")
client = openai.OpenAI(api_key="sk-test", base_url=os.environ["FORK_SERVER"])

def ask(**more):
    return client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}], **more
    )

with tp.workflow("outer"):
    left_open = iter(ask(stream=True))
    next(left_open)
    child = os.fork()
    client = openai.OpenAI(api_key="sk-test", base_url=os.environ["FORK_SERVER"])
    if not child:
        ask()
    else:
        assert os.waitpid(child, 0)[1] == 0
        for _ in left_open:
            pass
signals = handle.golden_signals()
assert (signals.runs, signals.sample.calls) == ((1, 1) if child else (0, 1)), (child, signals)
if not child:
    with tp.workflow("after"):
        pass
    assert handle.golden_signals().runs == 1
sys.exit(0)
"""


def test_what_is_under_way_is_the_parents(tmp_path: Path) -> None:
    """A run or stream that is open at a fork ends in the parent alone; what the child does there is a part of it."""
    with HttpReceiver() as receiver, EmbeddedServer() as server:
        environment = {
            **os.environ, "FORK_SERVER": server.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.origin, "OTEL_EXPORTER_OTLP_PROTOCOL": receiver.protocol,
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-c", IN_THE_MIDST],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert 0 == ended.returncode, ended.stderr
    spans = receiver.spans
    outer = next(span for span in spans if span.tags.get("workflow") == "outer" and not span.parent_id)
    assert ["chat gpt-4o-mini", "chat gpt-4o-mini", "workflow.run", "workflow.run"] == sorted(s.name for s in spans)
    assert 2 == sum(span.parent_id == outer.span_id for span in spans)


EVERY_LOCK = """
import faulthandler, gc, os, signal, threading, time
import prometheus_client
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.values import MutexValue, ValueClass
import taskpilot_instrument as tp
from taskpilot_instrument import _forks

faulthandler.enable()
handle = tp.instrument(
    logs="off", ledger="memory", budgets=[tp.Budget("all", 1_000, "day")],
    token_limits=[tp.TokenLimit(10**9, per="agent_minute"), tp.TokenLimit(10**9, per="run")],
    runaway=tp.Runaway(usd_per_minute=1_000), policies=[tp.MaxToolCalls(1_000)], alerts=[tp.Alert(print, "policy")],
)
handle.ring()

@tp.observed_tool(name="look")
def look() -> None:
    pass

@tp.observed_agent(name="WorkerAgent")
def answer() -> None:
    look()
    result = {"model": "gpt-4o", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    tp.track_llm_metrics(result, "WorkerAgent", handle.metrics)

def work() -> None:
    answer()
    handle.metrics.increment_counter("mine")
    handle.metrics.record_histogram("my.time", 1)
    handle.metrics.increment_counter("workflow.runs")
    handle.record_feedback(True, request_id="r")
    prometheus_client.generate_latest(handle.metrics.scraped)
    handle.golden_signals(window="5m")
    handle.health()
    handle.budgets()

work()
ours = [each._lock for each in gc.get_objects()
        if isinstance(each, (MutexValue, MetricWrapperBase)) and hasattr(each, "_lock")]
files = [cell.cell_contents for name, cell in zip(ValueClass.get.__code__.co_freevars, ValueClass.get.__closure__ or ())
         if name == "lock"]
locks = {id(each): each for each in [
    *_forks._locks, *ours, *files, handle.metrics.registry._lock, handle.metrics.scraped._lock]}.values()
assert len(locks) > 20
holding, done = threading.Event(), threading.Event()

def hold() -> None:
    for each in locks:
        each.acquire()
    holding.set()
    done.wait()
    for each in locks:
        each.release()

holder = threading.Thread(target=hold)
holder.start()
holding.wait()
child = os.fork()
if not child:
    work()
    handle.uninstrument()
    os._exit(0)
deadline = time.monotonic() + 20
while not (ended := os.waitpid(child, os.WNOHANG))[0]:
    if time.monotonic() > deadline:
        os.kill(child, signal.SIGABRT)
    time.sleep(0.01)
done.set()
holder.join()
work()
handle.uninstrument()
raise SystemExit(os.waitstatus_to_exitcode(ended[1]))
"""


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_fork_while_every_lock_is_held(shared: bool, tmp_path: Path) -> None:
    """Whatever locks another thread held, in the child they are free."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if shared else None
    ended = subprocess.run(
        [sys.executable, "-c", EVERY_LOCK], env=environment, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert 0 == ended.returncode, ended.stderr[-4000:]


_FORKS = """
import os, threading, time
import taskpilot_instrument as tp

handle = tp.instrument(ledger="memory", budgets=[tp.Budget("b", 1)], policies=[tp.Keywords(["x"])])
ANSWER = {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

@tp.observed_agent
def agent():
    tp.track_llm_metrics(ANSWER, "agent", handle.metrics)

def work():
    while True:
        agent()

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
hung = 0
for _ in range(20):
    child = os.fork()
    if child == 0:
        for _ in range(50):
            agent()
        os._exit(0)
    until = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            hung += 1
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
print(hung)
os._exit(0)
"""


def test_a_child_waits_for_no_thread_that_it_does_not_have() -> None:
    """However many threads count, spend and check while a process forks, its children do the same, and end."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=500,
    )
    assert b"0" == done.stdout.strip()


SERVERS = """
import os, urllib.request
import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer

server = EmbeddedServer().start()
handle = tp.instrument(logs="off", metrics_port=0)
url = handle.metrics_url
child = os.fork()
if not child:
    assert handle.metrics_url is None
    handle.uninstrument()
    server.stop()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for each in (url, server.url + "/models"):
    assert urllib.request.urlopen(each, timeout=10).status == 200
handle.uninstrument()
server.stop()
"""


def test_servers_stay_with_the_parent() -> None:
    """A child that undoes and stops everything neither hangs nor ends what the parent serves."""
    ended = subprocess.run([sys.executable, "-c", SERVERS], capture_output=True, text=True, timeout=60, check=False)
    assert 0 == ended.returncode, ended.stderr


#: Where locks are held across a fork, renewed by hand, or never waited for.
ELSEWHERE: Final = {
    "_alerting.py", "_forks.py", "_http.py", "_ledger_gate.py", "_log_targets.py", "_operation.py",
    "_totals.py", "_waiting.py",
}  # fmt: skip


def test_locks_are_free_after_a_fork() -> None:
    """Every other lock of the package is made such that a forked process finds it free."""
    made = {
        path.name
        for path in Path(tp.__file__).parent.rglob("*.py")
        if re.search(r"threading\.(R?Lock|Condition|Semaphore|Event)\(", path.read_text())
    }
    assert ELSEWHERE | {"_history.py"} == made
