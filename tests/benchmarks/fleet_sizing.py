"""What a fleet needs, reckoned from what one worker and one call were measured to come to."""

import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

from backends import prometheus, run

import taskpilot_instrument as tp

WORKERS: Final = 1000
CALLS_A_DAY: Final = 10**8
SCRAPE_S: Final = 15
DAY_S: Final = 86_400
#: How long the collector that ships keeps a trace before it decides, in seconds.
DECISION_WAIT_S: Final = 30
#: Share of the traces that it keeps: all of errors and of the dear and slow, and a tenth of the others.
KEPT: Final = 0.15
_CROWD_S: Final = 120
_SERIES: Final = re.compile(rb"^(?!#)(.*) (\S+)$", re.MULTILINE)


class Crowd(NamedTuple):
    """What so many targets are to a Prometheus, as measured.

    :param answer_s: how long the golden signals of the last minute took.
    """

    targets: int
    series: float
    resident_bytes: float
    cpu_share: float
    answer_s: float


def disk_bytes_a_sample(folder: Path, body: bytes) -> float:
    """Return what a sample takes in a block of two hours whose counters grow, as promtool writes it."""
    names = [name.decode() for name, _ in _SERIES.findall(body)]
    begun = (int(time.time()) - 10_800) // 7200 * 7200
    lines = [
        f"{name} {moment * (place % 7) // 11} {begun + moment}"
        for place, name in enumerate(names)
        for moment in range(0, 7200, SCRAPE_S)
    ]
    folder.mkdir()
    (folder / "history").write_text("\n".join([*lines, "# EOF", ""]))
    made = run("promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "history", folder / "data")
    assert made.returncode == 0, made.stderr
    return sum(file.stat().st_size for file in (folder / "data").rglob("*") if file.is_file()) / len(lines)


def crowd(folder: Path, body: bytes, targets: int) -> Crowd:
    """Let a Prometheus scrape so many workers for two minutes, and return what that takes."""
    folder.mkdir()
    text = [(name, float(value)) for name, value in _SERIES.findall(body)]
    begun = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            grown = int(time.monotonic() - begun)
            answer = b"\n".join(b"%b %g" % (name, value + grown) for name, value in text) + b"\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    configs: list[dict[str, Any]] = [
        {"targets": [address], "labels": {"instance": f"worker-{number}"}} for number in range(targets)
    ]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": "10s"},
        "scrape_configs": [{"job_name": "fleet", "static_configs": configs}],
    }
    try:
        with prometheus(folder, config) as running:
            # It scrapes itself by no job: its own metrics are read as they stand.
            time.sleep(_CROWD_S)
            own = _own(running.url)
            asked = time.monotonic()
            found = tp.golden_signals(source=running.url, window="1m")
            answer_s = time.monotonic() - asked
            assert found.runs
            return Crowd(
                targets, own["prometheus_tsdb_head_series"], own["process_resident_memory_bytes"],
                own["process_cpu_seconds_total"] / _CROWD_S, answer_s,
            )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()


def _own(url: str) -> dict[str, float]:
    from urllib.request import urlopen

    with urlopen(f"{url}/metrics", timeout=30) as response:
        return {name.decode(): float(value) for name, value in _SERIES.findall(response.read())}


def reckon(figures: dict[str, float], disk: float, massed: Crowd | None) -> Iterator[tuple[str, str, str]]:
    """Yield what, how much, and how it was got."""
    calls, series = CALLS_A_DAY / DAY_S, figures["series a worker"] * WORKERS
    samples, spans = series / SCRAPE_S, figures["spans a call"] * calls
    span_bytes, log_bytes = figures["span bytes a call"] * calls, figures["log bytes a call"] * calls
    yield "calls a second, on average", f"{calls:,.0f}", "10⁸ ÷ 86,400; size for three times that at the peak"
    yield "calls a second and worker", f"{calls / WORKERS:,.2f}", "÷ 1,000"
    yield "CPUs for observing, all workers", f"{figures['CPU ms added a run'] * calls / 1000:,.1f}", "CPU added × calls"
    yield "series", f"{series:,.0f}", "series a worker × 1,000"
    yield "samples a second", f"{samples:,.0f}", f"series ÷ {SCRAPE_S} s"
    yield "scrapes, MB a second", f"{figures['scrape bytes, gzipped'] * WORKERS / SCRAPE_S / 1e6:,.2f}", "gzipped"
    yield "Prometheus disk, GB a day", f"{samples * DAY_S * disk / 1e9:,.1f}", f"samples × {disk:.2f} bytes, measured"
    if massed is not None:
        each = massed.resident_bytes / massed.series
        how = f"{massed.series:,.0f} series of {massed.targets:,} targets, measured: {each:,.0f} bytes each"
        yield "Prometheus memory, GB", f"{each * series / 1e9:,.1f}", how
        yield "Prometheus CPUs", f"{massed.cpu_share * series / massed.series:,.2f}", "measured, in proportion"
        yield "golden_signals(source=…, window='1m'), s", f"{massed.answer_s:,.2f}", "measured"
    yield "spans a second", f"{spans:,.0f}", "spans a call × calls"
    yield "span MB a second", f"{span_bytes / 1e6:,.1f}", "protobuf, not compressed"
    yield (
        "span MB a second, gzipped",
        f"{figures['span bytes a call, gzipped'] * calls / 1e6:,.2f}",
        ("OTEL_EXPORTER_OTLP_COMPRESSION=gzip"),
    )
    yield "span GB a day", f"{span_bytes * DAY_S / 1e9:,.0f}", "all of them"
    yield "span GB a day, sampled", f"{span_bytes * DAY_S * KEPT / 1e9:,.0f}", f"{KEPT:.0%} of the traces kept"
    yield (
        "collector memory for tail sampling, GB",
        f"{span_bytes * DECISION_WAIT_S * 3 / 1e9:,.2f}",
        (f"{DECISION_WAIT_S} s of spans × 3 for objects in memory (assumed)"),
    )
    yield "log lines a second", f"{figures['log lines a call'] * calls:,.0f}", "log lines a call × calls"
    yield "log MB a second", f"{log_bytes / 1e6:,.1f}", "log bytes a call × calls"
    yield "log GB a day", f"{log_bytes * DAY_S / 1e9:,.0f}", "as written"
    gzipped = figures["log bytes a call, gzipped"] * CALLS_A_DAY / 1e9
    yield "log GB a day, gzipped", f"{gzipped:,.0f}", "what shipping and an archive take"
