"""Time both paths of the Triton kernels for patch attention at the generator's three maps; check them first.

``python -m benchmarks.variants_patch_attention`` takes under 20 seconds on a GPU. ``--dry-run`` does the same at tiny
shapes on a CPU, in Triton's interpreter (TRITON_INTERPRET=1), so that nothing but the figures can go wrong on a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import extra_memory, graphed
from fastinpaint.reference import patch_attention as reference
from fastinpaint_kernels import _patch_flash
from fastinpaint_kernels import patch_attention as kernels

OPTIONS = (3, 2, 10.0, False)  # kernel size, stride, scale, overlap-add
MAPS = ((64, 128), (128, 64), (256, 32))  # channels, side
WORKSPACES = (62, 250)  # MiB; the first is what the kernels take
TOLERANCE = 2e-2  # bfloat16 weights and patches between products
Call = Callable[[], object]


def milliseconds(call: Call, device: str, budget: float = 0.15) -> tuple[float, float]:
    """Median and the distance of the quartiles over samples of about 10 ms, for ``budget`` seconds."""

    def sample(count: int) -> float:
        if device == "cpu":
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / count

    first = sample(1)
    if device == "cpu":
        return first, 0.0
    count = max(1, round(10 / max(sample(1), 0.01)))
    samples = [sample(count) for _ in range(max(5, round(budget * 100)))]
    low, middle, high = statistics.quantiles(samples, n=4)
    return middle, high - low


def error_of(result: Tensor, wanted: Tensor) -> float:
    """Relative L2 error."""
    return ((result.double() - wanted).norm() / wanted.norm()).item()


def rows(channels: int, side: int, batch: int, device: str) -> list[str]:
    """Lines of the table for one map."""
    torch.manual_seed(0)
    features = (torch.randn(batch, channels, side, side, device=device) / 8).bfloat16()
    features = features.contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(features)
    leaf = features[:1].double().requires_grad_()
    wanted = reference.patch_attention(leaf)
    (wanted_grad,) = torch.autograd.grad(wanted, leaf, weight[:1].double())
    lines = []

    def add(name: str, call: Call, result: Tensor, reference: Tensor) -> None:
        error = error_of(result[:1], reference.detach())
        verdict = "" if error <= TOLERANCE else "  WRONG"
        figures = [milliseconds(call, device)]
        if device == "cuda":
            figures.append(milliseconds(graphed([call]), device))
        times = "  ".join(f"{middle / batch:8.4f} +- {spread / batch:6.4f}" for middle, spread in figures)
        lines.append(
            f"{batch:3d} x {side:3d}^2 x {channels:3d}  {name:14s} {error:.1e}{verdict}  {times}  "
            f"{extra_memory(call, device):7.1f}"
        )

    def forward(path: str | None = None) -> tuple[Tensor, Tensor]:
        return kernels.patch_attention_forward(features, *OPTIONS, path=path)

    def backward() -> Tensor:
        return kernels.patch_attention_backward(weight, features, lse, *OPTIONS)

    _, lse = forward("bmm")
    for mebibytes in WORKSPACES:
        kernels.WORKSPACE = mebibytes * 2**20
        for path in ("bmm", "flash"):
            if path == "flash" and _patch_flash.gap(features.dtype, 9 * channels, None):
                continue
            try:
                add(f"{path} {mebibytes}", partial(forward, path), forward(path)[0], wanted)
            except Exception as failure:  # the other rows are still worth having
                lines.append(f"{batch} x {side}^2 x {channels}  {path}  {type(failure).__name__}: {failure}")
        add(f"backward {mebibytes}", backward, backward(), wanted_grad)
    return lines


def main() -> None:
    """Print one line for each map, batch and path."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants_patch_attention", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8], help="images at a time (default: 1 8)")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    print("map, path, relative error, ms an image (eager, then graph) +- quartile distance, extra MiB", flush=True)
    for channels, side in ((8, 4),) if options.dry_run else MAPS:
        for batch in [1] if options.dry_run else options.batch:
            for line in rows(channels, side, batch, device):
                print(line, flush=True)


if __name__ == "__main__":
    main()
