"""Where log lines go: streams, files, loggers; what becomes of them when these break."""

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from log_bench import Bench, parsed, records_of, run_workflow

from taskpilot_instrument import _guard
from taskpilot_instrument._operation import Operation
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import (
    Kind,
)
from taskpilot_instrument.sinks.logs import LogSink

# --- targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stderr", "stdout"])
def test_a_standard_stream_is_found_anew_at_each_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is redirected after the sink was made gets the lines."""
    bench, redirected = Bench(name), io.StringIO()
    monkeypatch.setattr(sys, name, redirected)
    run_workflow(bench)

    assert 5 == len(parsed(redirected.getvalue()))


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a target lines go to stderr; stdout belongs to the application."""
    LogSink().record_event("e", "audit", "INFO", "m")
    written = capsys.readouterr()

    assert ("", 1) == (written.out, len(parsed(written.err)))


@pytest.mark.parametrize("target", [None, "off"])
def test_off_writes_nothing(target: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A sink that is off takes everything and writes nothing."""
    sink = LogSink(target)
    bench = Bench()
    recorder = replace(bench.recorder, sinks=(sink,))
    Operation(recorder, Kind.AGENT, "x").finish(ValueError())
    sink.record_event("e", "error", "CRITICAL", "m")
    sink.close()

    assert ("", "") == capsys.readouterr()


class OneWrite:
    """A stream that keeps what each call of write() brought."""

    def __init__(self) -> None:
        self.writes: list[str] = []

    def write(self, text: str, /) -> None:
        """Keep it."""
        self.writes.append(text)


def test_a_line_is_one_write() -> None:
    """A line and its end reach the stream in one call, and nothing but write() is needed of a stream."""
    stream = OneWrite()
    run_workflow(Bench(stream))

    assert 5 == len(stream.writes)
    assert all(text.endswith("}\n") for text in stream.writes)


def test_any_encoding_of_a_stream_will_do() -> None:
    """A stream that can only write ASCII gets every letter of a name through."""
    raw = io.BytesIO()
    bench = Bench(io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    with bench.start(Kind.TOOL, "größe_日本_🎉"):
        pass

    assert "größe_日本_🎉" == parsed(raw.getvalue().decode("ascii"))[0]["tool"]


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_file_is_appended_to(tmp_path: Path, as_path: Callable[[Path], str | Path]) -> None:
    """What was in the file stays, and each line is there as soon as it is written."""
    path = tmp_path / "lines.json"
    path.write_text('{"before": true}\n')
    bench = Bench(as_path(path))
    run_workflow(bench)

    assert {"before": True} == parsed(path.read_text())[0]
    assert 6 == len(parsed(path.read_text()))
    bench.sink.close()


@pytest.mark.parametrize("rotate", [lambda path: path.rename(f"{path}.1"), lambda path: path.unlink()])
def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path, rotate: Callable[[Path], object]) -> None:
    """After a rotation the lines go to the new file within a second."""
    path = tmp_path / "lines.json"
    bench = Bench(path)
    bench.sink.record_event("before", "audit", "INFO", "m")
    rotate(path)
    bench.time.passed_ns += 1_000_000_000
    bench.sink.record_event("after", "audit", "INFO", "m")

    assert ["after"] == [line["event_name"] for line in parsed(path.read_text())]
    bench.sink.close()


def test_a_line_after_the_close_opens_the_file_again(tmp_path: Path) -> None:
    """A stream that ends after the instrumentation is not lost."""
    path = tmp_path / "lines.json"
    bench = Bench(path)
    bench.sink.close()
    bench.sink.close()
    bench.sink.record_event("late", "audit", "INFO", "m")

    assert ["late"] == [line["event_name"] for line in parsed(path.read_text())]
    bench.sink.close()


def test_a_closed_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Opening and closing sinks does not use up descriptors."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        bench = Bench(tmp_path / "lines.json")
        bench.sink.record_event("e", "audit", "INFO", "m")
        bench.sink.close()

    assert before == len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("profile", "agent"), [("flat", "agent"), ("ecs", "gen_ai.agent.name")])
def test_a_stdlib_logger_gets_line_and_fields(logger: logging.Logger, profile: str, agent: str) -> None:
    """The message is the line; the fields are attributes, for handlers that send those on."""
    bench = Bench(logger, profile=profile)
    bench.start(Kind.AGENT, "100 %s").finish(ValueError("wrong"))
    records = records_of(logger)

    assert ["INFO", "ERROR", "ERROR"] == [record.levelname for record in records]
    for record in records[:2]:
        (line,) = parsed(record.getMessage())
        assert "100 %s" == line[agent] == getattr(record, agent)
        del line["message"]
        assert line.items() <= vars(record).items()


def test_a_stdlib_logger_keeps_its_own_level(logger: logging.Logger) -> None:
    """The logger's level decides, as for its other messages."""
    logger.setLevel(logging.ERROR)
    bench = Bench(logger)
    run_workflow(bench)

    assert [] == records_of(logger)


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def _broken_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return io.TextIOWrapper(io.FileIO(writing, "w"), write_through=True)


@pytest.mark.parametrize("make", [_closed, _broken_pipe])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_stream_does_not_reach_the_caller(make: Callable[[], Any], swallowing: None) -> None:
    """Lines that cannot be written are counted, and the application goes on."""
    bench = Bench(make())
    run_workflow(bench)
    bench.sink.record_event("e", "audit", "INFO", "m")

    assert {"log": 6} == _guard.swallowed()


@pytest.mark.parametrize(
    ("said", "target", "arguments"),
    [
        ("'stderr', 'stdout', 'off'", 42, {}),
        ("existing directory", "/nowhere/at/all/lines.json", {}),
        ("flat, ecs", "off", {"profile": "xml"}),
        ("INFO", "off", {"level": "LOUD"}),
    ],
)
def test_wrong_arguments_say_what_would_be_right(said: str, target: Any, arguments: dict[str, Any]) -> None:
    """Each wrong argument is named with the values that are right."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        LogSink(target, **arguments)


@pytest.mark.parametrize("kind", ["file", "stream", "StringIO"])
def test_lines_of_many_threads_do_not_mix(tmp_path: Path, kind: str) -> None:
    """Two threads write ten thousand lines, and each is whole."""
    path = tmp_path / "lines.json"
    stream = io.StringIO()
    with path.open("w") as opened:
        bench = Bench({"file": path, "stream": opened, "StringIO": stream}[kind])

        def write(name: str) -> None:
            for _ in range(5_000):
                Operation(bench.recorder, Kind.TOOL, name * 50).finish()

        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bench.sink.close()
    lines = parsed(stream.getvalue() or path.read_text())

    assert {"a" * 50: 5_000, "b" * 50: 5_000} == {
        name: sum(line["tool"] == name for line in lines) for name in {line["tool"] for line in lines}
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_writes_while_its_parent_does(tmp_path: Path) -> None:
    """A process forked while another thread was writing does not hang, and shares the file."""
    path = tmp_path / "lines.json"
    bench = Bench(path)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            bench.sink.record_event("parent", "audit", "INFO", "m")

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            bench.sink.record_event("child", "audit", "INFO", "m")
            os._exit(0)
        assert (child, 0) == os.waitpid(child, 0)
    stop.set()
    thread.join()
    bench.sink.close()

    assert 10 == sum(line["event_name"] == "child" for line in parsed(path.read_text()))
