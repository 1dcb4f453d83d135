"""Who observes the calls of a front door, as its options ask for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from bilateral_serving.front_door.access_log import AccessLog
from bilateral_serving.front_door.call_record import Observer, Observers
from bilateral_serving.front_door.model_hashes import ModelHashes
from bilateral_serving.front_door.options import FrontDoorOptions


@contextlib.asynccontextmanager
async def observed(options: FrontDoorOptions) -> AsyncIterator[Observers]:
    """Open what observes, and close it at the end of the block; nothing else is imported.

    Raises:
        OSError: The metrics' port is taken.
    """
    found: list[Observer] = []
    async with contextlib.AsyncExitStack() as stack:
        log = None
        target = options.access_log if options.access_log_fd is None else options.access_log_fd
        if target is not None:
            log = AccessLog(target, ModelHashes(options.repository))
            stack.callback(log.close)
            found.append(log)
        if options.otlp is not None:
            from bilateral_serving.front_door.tracing import Tracing

            tracing = Tracing(options.otlp)
            stack.callback(tracing.close)
            found.insert(0, tracing)
        if options.metrics_listen is not None:
            from bilateral_serving.front_door.metrics import CallMetrics, MetricsPage

            assert options.metrics_upstream is not None
            metrics = CallMetrics(lambda: log.dropped if log else 0)
            found.append(metrics)
            page = MetricsPage(options.metrics_listen, options.metrics_upstream, metrics.lines)
            runner = await page.listen()
            stack.push_async_callback(runner.cleanup)
        yield Observers(found)
