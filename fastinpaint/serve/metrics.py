"""Counters in the text format of Prometheus."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from pathlib import Path

_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # seconds


class Metrics:
    """What the server has done; used by the event loop's thread alone."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._jobs: Counter[str] = Counter()
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def count_request(self, route: str, status: int) -> None:
        """Count an answer."""
        self._requests[route, status] += 1

    def count_job(self, result: str, seconds: float) -> None:
        """Count a job: ``"done"``, ``"refused"``, ``"failed"``, ``"cancelled"`` or ``"timeout"``."""
        self._jobs[result] += 1
        if result == "done":
            self._buckets[bisect_left(_BOUNDS, seconds)] += 1
            self._seconds += seconds

    def mean_seconds(self) -> float:
        """Return the mean time of a job that was done, waiting included; 1 before the first."""
        return self._seconds / self._jobs["done"] if self._jobs["done"] else 1.0

    def text(self, waiting: int, running: int, passes: int, calls: int) -> str:
        """Write all of it, with the jobs that wait and run and the generator's passes and calls."""
        lines = ["# TYPE fastinpaint_requests_total counter"]
        lines += [
            f'fastinpaint_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self._requests.items())
        ]
        lines.append("# TYPE fastinpaint_jobs_total counter")
        lines += [f'fastinpaint_jobs_total{{result="{name}"}} {count}' for name, count in sorted(self._jobs.items())]
        lines.append("# TYPE fastinpaint_job_seconds histogram")
        total = 0
        for bound, count in zip((*_BOUNDS, "+Inf"), self._buckets, strict=True):
            total += count
            lines.append(f'fastinpaint_job_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"fastinpaint_job_seconds_sum {self._seconds:.6f}", f"fastinpaint_job_seconds_count {total}"]
        lines += ["# TYPE fastinpaint_jobs gauge", f'fastinpaint_jobs{{state="waiting"}} {waiting}']
        lines.append(f'fastinpaint_jobs{{state="running"}} {running}')
        lines += ["# TYPE fastinpaint_generator_passes_total counter", f"fastinpaint_generator_passes_total {passes}"]
        lines += ["# TYPE fastinpaint_generator_calls_total counter", f"fastinpaint_generator_calls_total {calls}"]
        memory = resident_memory()
        if memory is not None:
            lines += ["# TYPE process_resident_memory_bytes gauge", f"process_resident_memory_bytes {memory}"]
        return "\n".join(lines) + "\n"


def resident_memory(process: int | str = "self") -> int | None:
    """Return the bytes of memory that a process holds; None where the system does not tell (Linux does)."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
