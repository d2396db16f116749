"""A process that forks while its threads work goes on, and so does the child."""

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_child_waits_for_no_thread_that_it_does_not_have() -> None:
    """However many threads count, spend and check while a process forks, its children do the same, and end."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    assert b"0" == done.stdout.strip()
