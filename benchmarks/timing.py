"""Time and memory of rivals in one process."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

SAMPLE_SECONDS = 4e-3  # a sample repeats its call until it lasts this long, so that the clock does not count


def spread(seconds: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median; 0 for a single sample."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle


def time_in_turns(
    rivals: Mapping[str, Callable[[], object]], device: str = "cpu", *, rounds: int = 30, budget: float = 1.0
) -> dict[str, list[float]]:
    """Time the rivals in turns: whatever slows the machine down for a while slows all of them.

    Args:
        rivals: Name to call.
        device: ``"cpu"`` or ``"cuda"``.
        rounds: Samples of each.
        budget: Seconds for each rival. One that has used them up sits out, after three samples at least; a call that
            takes longer than four of them is sampled once.

    Returns:
        Seconds per call, a number for each sample.
    """
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def sample(call: Callable[[], object], repeats: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        return (time.perf_counter() - start) / repeats

    samples: dict[str, list[float]] = {name: [] for name in rivals}
    repeats = {}
    for name, call in rivals.items():
        first = sample(call, 1)
        if first > 4 * budget:
            samples[name] = [first]
            continue
        repeats[name] = max(1, round(SAMPLE_SECONDS / sample(call, 1)))
    for _ in range(rounds):
        for name, count in repeats.items():
            if len(samples[name]) < 3 or sum(samples[name]) * count < budget:
                samples[name].append(sample(rivals[name], count))
    return samples


def extra_memory(run: Callable[[], object], device: str = "cpu") -> float:
    """MiB by which a call raises the peak: of resident memory (Linux with glibc), or of what CUDA tensors take."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5")
    peak = _peak_mib()
    run()
    return _peak_mib() - peak


def _peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
