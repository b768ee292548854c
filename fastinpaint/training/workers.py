"""Data workers: how many, and what their failures mean."""

from __future__ import annotations

import os


def explained(error: Exception, timeout: float) -> Exception:
    """Return what the loader raised without the traceback that it puts into the message."""
    text = str(error)
    if "in DataLoader worker process" in text:
        cause = text.rstrip().rpartition("\n")[2]
        return ValueError(f"a data worker failed: {cause}")
    if "timed out" in text:
        return TimeoutError(f"no batch came from the data workers within data_timeout = {timeout:g} s")
    if "exited unexpectedly" in text or "killed by signal" in text:
        return ChildProcessError(f"{text.split('. ', maxsplit=1)[0]}; if memory ran out, take fewer workers")
    return error


def spare_cores(processes: int = 1) -> int:
    """All cores that this process may use, shared with the others of this machine, but one; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // processes - 1, 1)
