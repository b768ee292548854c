"""Patch attention against its convolution form and torch's fused attention, on the CPU.

``python -m benchmarks.bench_patch_attention [--pixels 128] [--repeats 5] [--backward]`` prints a Markdown table. Every
backend's result is compared with the convolution form's before it is timed; the backends take turns in one process.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinpaint.ops.patch_attention import patch_attention
from fastinpaint.reference.patch_attention import NORM_FLOOR, key_patches

CHANNELS = {32: 256, 64: 128, 128: 64}  # of the maps in the generator that are this wide
KERNEL_SIZE, STRIDE, SCALE = 3, 2, 10.0  # the generator's
Run = Callable[[Tensor], Tensor]


def fused_attention(features: Tensor) -> Tensor:
    """The same through ``scaled_dot_product_attention`` over unfolded patches, folded back with their sides swapped."""
    height, width = features.shape[2:]
    query = F.unfold(features, KERNEL_SIZE, padding=KERNEL_SIZE // 2).transpose(1, 2)  # (B, N, C k k)
    patches = key_patches(features, KERNEL_SIZE, STRIDE)  # (B, M, C, k, k)
    norm = patches.square().sum((2, 3, 4), keepdim=True).clamp_min(NORM_FLOOR**2).sqrt()
    value = patches.flip(3, 4).flatten(2)
    result = F.scaled_dot_product_attention(query, (patches / norm).flatten(2), value, scale=SCALE)
    return F.fold(result.transpose(1, 2), (height, width), KERNEL_SIZE, padding=KERNEL_SIZE // 2) / 4


def peers() -> dict[str, Run]:
    """Name -> features to output."""

    def ours(backend: str) -> Run:
        return lambda features: patch_attention(
            features, kernel_size=KERNEL_SIZE, stride=STRIDE, softmax_scale=SCALE, backend=backend
        )

    return {
        "convolutions": ours("reference"),
        "scaled_dot_product_attention": fused_attention,
        "native": ours("native"),
    }


def with_backward(run: Run, weight: Tensor) -> Run:
    """Forward and backward; returns the gradient."""

    def both(features: Tensor) -> Tensor:
        features = features.detach().requires_grad_()
        return torch.autograd.grad(run(features), features, weight)[0]

    return both


def _peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def extra_memory(run: Run, features: Tensor) -> float:
    """MiB by which a call raises the peak of resident memory (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    run(features)
    return _peak_mib() - before


def measure(runs: dict[str, Run], features: Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, the runs taking turns, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(features)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=128, choices=CHANNELS, help="side of the map")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    options = parser.parse_args()
    torch.manual_seed(0)
    features = torch.randn(1, CHANNELS[options.pixels], options.pixels, options.pixels)
    runs = peers()
    if options.backward:
        runs = {name: with_backward(run, torch.randn_like(features)) for name, run in runs.items()}
    memory = {name: extra_memory(run, features) for name, run in runs.items()}
    wanted = runs["convolutions"](features)
    for name, run in runs.items():
        message = f"{name} differs from the convolution form"
        torch.testing.assert_close(run(features), wanted, rtol=1e-3, atol=1e-3, msg=message)
    seconds = measure(runs, features, options.repeats)
    baseline = statistics.median(seconds["convolutions"])
    print(f"{tuple(features.shape)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| backend | median ms | least to most ms | speed-up | extra MiB |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{1e3 * min(times):.0f} to {1e3 * max(times):.0f}"
        print(f"| {name} | {1e3 * middle:.0f} | {spread} | {baseline / middle:.2f} | {memory[name]:.0f} |")


if __name__ == "__main__":
    main()
