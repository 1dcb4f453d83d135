"""The metrics page: counters of the front door, followed by Triton's own page."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import aiohttp
from aiohttp import web

from bilateral_serving.front_door.call_record import FINE, CallRecord

BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper ends of the buckets of every duration, in seconds, as in `python_backend/metrics.py`."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A caller may ask for any name: one that no model has ever answered to is not made a label.
_UNKNOWN = ""
_PATIENCE_S = 3.0


class CallMetrics:
    """Counts calls by model and status, and how long they took.

    Args:
        dropped: Returns how many lines the access log has lost.
    """

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped
        self._known: set[str] = set()
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
        self._sums: dict[str, float] = defaultdict(float)
        self._under_way = 0

    def begin(self, record: CallRecord, _metadata: Mapping[str, str]) -> Callable[[], None]:
        """Count a call as under way; what is returned counts it as ended."""
        self._under_way += 1
        return lambda: self._end(record)

    def _end(self, record: CallRecord) -> None:
        self._under_way -= 1
        if record.status in FINE and record.model:
            self._known.add(record.model)
        model = record.model if record.model in self._known else _UNKNOWN
        self._calls[record.protocol, model, record.status] += 1
        seconds = (record.ended_ns - record.accepted_ns) / 1e9
        self._buckets[model][bisect_left(BUCKETS_S, seconds)] += 1
        self._sums[model] += seconds

    def lines(self) -> Iterator[str]:
        """Return the lines of the page, in Prometheus' text format."""
        yield from _head("bilateral_calls_total", "counter", "Calls, by what came of them")
        for (protocol, model, status), count in sorted(self._calls.items()):
            yield (
                f'bilateral_calls_total{{protocol="{protocol}",model="{model}",status="{status}"}}'
                f" {count}"
            )
        name = "bilateral_call_duration_seconds"
        yield from _head(name, "histogram", "From the acceptance of a call to its answer")
        for model, counts in sorted(self._buckets.items()):
            below = 0
            for end, count in zip((*BUCKETS_S, "+Inf"), counts, strict=True):
                below += count
                yield f'{name}_bucket{{model="{model}",le="{end}"}} {below}'
            yield f'{name}_sum{{model="{model}"}} {self._sums[model]:.9g}'
            yield f'{name}_count{{model="{model}"}} {below}'
        yield from _gauge("bilateral_calls_under_way", "Calls without an answer", self._under_way)
        name = "bilateral_access_log_dropped_total"
        yield from _head(name, "counter", "Lines that the access log has lost")
        yield f"{name} {self._dropped()}"


class MetricsPage:
    """Answers Prometheus with one page.

    Args:
        listen: "host:port".
        upstream: The socket where Triton serves its own page.
        lines: Makes the front door's lines.
    """

    def __init__(self, listen: str, upstream: str, lines: Callable[[], Iterable[str]]) -> None:
        self._host, _, self._port = listen.rpartition(":")
        self._upstream, self._lines = upstream, lines
        self._fetching: asyncio.Task[str | None] | None = None

    async def listen(self) -> web.AppRunner:
        """Start to answer; returns what is to be cleaned up at the end.

        Raises:
            OSError: The port is taken.
        """
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, self._host.strip("[]"), int(self._port), reuse_port=False)
        await site.start()
        return runner

    async def _answer(self, _request: web.Request) -> web.Response:
        # One at a time, which no scrape cancels.
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.wait((self._fetching,), timeout=_PATIENCE_S)
        triton = self._fetching.result() if self._fetching.done() else None
        about = "Whether tritonserver gave its metrics"
        up = _gauge("bilateral_triton_up", about, int(bool(triton)))
        page = "\n".join([*self._lines(), *up, triton or ""])
        return web.Response(body=page.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _fetch(self) -> str | None:
        connector = aiohttp.UnixConnector(self._upstream, force_close=True)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=aiohttp.ClientTimeout(total=None)
                ) as session,
                session.get("http://triton/metrics") as answer,
            ):
                return await answer.text() if answer.status == 200 else None
        except (aiohttp.ClientError, OSError):
            return None


def _head(name: str, kind: str, about: str) -> tuple[str, str]:
    return f"# HELP {name} {about}", f"# TYPE {name} {kind}"


def _gauge(name: str, about: str, value: int) -> list[str]:
    return [*_head(name, "gauge", about), f"{name} {value}"]
