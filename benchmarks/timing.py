"""Time and memory of competitors in one process."""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SAMPLE_SECONDS = 4e-3  # a sample repeats its call until it lasts this long, so that the clock does not count
WARM_SECONDS = 0.03  # on a GPU, so that its clock has risen


def time_in_turns(
    competitors: Mapping[str, Callable[[], object]], *, rounds: int = 30, budget: float = 1.0
) -> dict[str, list[float]]:
    """Time the competitors on the CPU, in turns: whatever slows the machine down for a while slows all of them.

    Args:
        competitors: Name to call.
        rounds: Samples of each.
        budget: Seconds for each competitor. One that has used them up sits out, after three samples at least; a call
            that takes longer than four of them is sampled once.

    Returns:
        Seconds per call, a number for each sample.
    """

    def sample(call: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    samples: dict[str, list[float]] = {name: [] for name in competitors}
    repeats = {}
    for name, call in competitors.items():
        first = sample(call, 1)
        if first > 4 * budget:
            samples[name] = [first]
            continue
        repeats[name] = max(1, round(SAMPLE_SECONDS / sample(call, 1)))
    for _ in range(rounds):
        for name, count in repeats.items():
            if len(samples[name]) < 3 or sum(samples[name]) * count < budget:
                samples[name].append(sample(competitors[name], count))
    return samples


def time_on_gpu(calls: Sequence[Callable[[], object]], *, rounds: int = 30, budget: float = 0.2) -> list[float]:
    """Time one competitor on the current CUDA stream by events, from the first call's start to the last one's end.

    Calls follow each other without waiting, so a sample holds what takes longer, the host or the device.

    Args:
        calls: The same work on several sets of inputs, taken in turn so that caches do not flatter.
        rounds: Samples.
        budget: Seconds; at least three samples are taken, one if a call takes longer than four budgets.

    Returns:
        Seconds per call, a number for each sample.
    """
    following = 0

    def sample(repeats: int) -> float:
        nonlocal following
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            calls[following % len(calls)]()
            following += 1
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats

    first = sample(1)
    if first > 4 * budget:
        return [first]
    second = max(sample(1), 1e-7)
    if second < WARM_SECONDS:
        second = max(sample(min(1000, max(1, round(WARM_SECONDS / second)))), 1e-7)
    repeats = max(1, round(SAMPLE_SECONDS / second))
    seconds: list[float] = []
    while len(seconds) < rounds and (len(seconds) < 3 or sum(seconds) * repeats < budget):
        seconds.append(sample(repeats))
    return seconds


def graphed(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Replay a CUDA graph of calls, one after the other: their launches without what the host takes to launch them.

    Returns:
        The replay; it returns what the last call returned, renewed by each replay.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def profile(calls: Sequence[Callable[[], object]], rows: int = 60) -> str:
    """The profiler's CUDA kernels, longest first: microseconds a call, launches a call, name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for call in calls:
            call()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    lines = [
        f"{event.self_device_time_total / len(calls):12,.1f} us {event.count / len(calls):7.1f} x  {event.key[:240]}"
        for event in events
        if event.self_device_time_total > 0
    ]
    total = sum(event.self_device_time_total for event in events) / len(calls)
    launches = sum(event.count for event in events if event.self_device_time_total > 0) / len(calls)
    return "\n".join([f"{total:12,.1f} us {launches:7.1f} x  all kernels", *lines[:rows]]) if lines else ""


def extra_memory(run: Callable[[], object], device: str = "cpu") -> float:
    """MiB by which a call raises the peak: of resident memory (Linux with glibc), or of what CUDA tensors take."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5")
    peak = _peak_mib()
    run()
    return _peak_mib() - peak


def _peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
