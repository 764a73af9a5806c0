"""Time and memory of calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]


def seconds(*calls: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of each call, taken in turn after one warm-up."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes of tensors held at once during a call, over what was held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = call()
    del kept
    held = peak = 0
    for event in sorted(found.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
