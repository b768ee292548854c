"""Every kernel once, for a profiler or a sanitizer: ``python -m benchmarks.workload --for ncu`` or ``sanitizer``.

For ncu the calls lie between cudaProfilerStart and Stop, at the sizes of the targets, and each operator's kernels
follow a ``spin_kernel``; its tuning is done before. For the sanitizers sizes are small and odd.
"""

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from benchmarks import stand_in
from fastinpaint.ops.canny import canny, canny_pyramid
from fastinpaint.ops.edge_priority import edge_priority
from fastinpaint.ops.patch_attention import patch_attention
from fastinpaint.ops.pooled_attention import pooled_attention
from fastinpaint.ops.sobel_edges import sobel_edges
from fastinpaint.ops.structure_loss import pyramid_structure_loss

Call = Callable[[], Any]


def rand(device: str, *shape: int, normal: bool = False) -> torch.Tensor:
    """Made on the CPU: no kernel of torch's for a sanitizer to slow down."""
    return (torch.randn(shape) if normal else torch.rand(shape)).to(device)


def operators(device: str, large: bool) -> dict[str, Call]:
    """Name to a call, the most valuable first."""
    batch, side = (16, 256) if large else (1, 12 if stand_in.installed() else 70)
    image = rand(device, batch, 3, side, side) * 2 - 1
    calls: dict[str, Call] = {}
    gray = rand(device, batch, 1, side, side + (0 if large else 27))
    calls["canny"] = lambda: canny(gray, backend="native")
    calls["canny_pyramid"] = lambda: canny_pyramid(image, backend="native")
    if not large:
        mask = (rand(device, *gray.shape) > 0.02).to(torch.bool)
        calls["canny masked"] = lambda: canny(gray, mask=mask, backend="native")
        calls["canny wide"] = lambda: canny(gray, sigma=12.0, mask=mask, backend="native")

    sides = (side, side // 2, side // 4)
    predictions = [rand(device, batch, 6, s, s, normal=True).bfloat16().requires_grad_() for s in sides]
    edges = [(rand(device, batch, 1, s, s) < 0.1).float() for s in sides]

    def structure_loss() -> Any:
        loss = pyramid_structure_loss(image, predictions, edges=edges, backend="triton")
        return torch.autograd.grad(loss, predictions)

    calls["structure_loss"] = structure_loss
    for dtype, width in ((torch.bfloat16, 4), (torch.float32, 4), (torch.bfloat16, 8)):
        rows = (
            (16384 // (width // 4) ** 2, 4096 // (width // 4) ** 2)
            if large
            else (18, 7)
            if stand_in.installed()
            else (70, 37)
        )
        leaves = [rand(device, batch, n, width, normal=True).to(dtype).requires_grad_() for n in (*rows, rows[1])]
        name = f"pooled_attention {str(dtype).removeprefix('torch.')} {width}"
        calls[name] = _differentiated(lambda *x: pooled_attention(*x, backend="triton"), leaves)
    calls |= _newer(device, image, edges[0], batch, side)
    # Last: its launches are many, and ncu's are numbered.
    channels, length = (64, 128) if large else (16, 4 if stand_in.installed() else 10)
    maps = [(rand(device, 1, channels, length, length, normal=True) / 8).bfloat16().requires_grad_()]
    calls["patch_attention"] = _differentiated(lambda x: patch_attention(x, backend="triton"), maps)
    return calls


def _newer(device: str, image: torch.Tensor, edges: torch.Tensor, batch: int, side: int) -> dict[str, Call]:
    """Operators that an older tree lacks, or has no Triton kernels of."""
    calls: dict[str, Call] = {
        "sobel_edges": lambda: sobel_edges(image, backend="triton"),
        "edge_priority": lambda: edge_priority(edges, backend="triton"),
    }
    channels = 64 if batch > 1 else 8
    x = rand(device, batch, channels, side, side, normal=True).bfloat16().contiguous(memory_format=torch.channels_last)
    affine = [rand(device, channels).requires_grad_() for _ in range(2)]

    def norm(x: torch.Tensor, *affine: torch.Tensor) -> torch.Tensor:
        instance_norm = import_module("fastinpaint.ops.instance_norm").instance_norm
        result: torch.Tensor = instance_norm(x, *affine, relu=True, padding=1, backend="triton")
        return result

    calls["instance_norm"] = _differentiated(norm, [x.requires_grad_(), *affine])
    return calls


def _differentiated(function: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> Call:
    slopes: list[torch.Tensor] = []

    def run() -> Any:
        result = function(*leaves)
        if not slopes:
            slopes.append(torch.randn(result.shape).to(result.device, result.dtype))
        return torch.autograd.grad(result, leaves, slopes[0])

    return run


def main() -> None:
    """Run all of them, and say what could not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workload", description=__doc__)
    parser.add_argument("--for", dest="tool", choices=("ncu", "sanitizer"), required=True)
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--seconds", type=float, default=600.0, help="no operator begins later")
    parser.add_argument("--dry-run", action="store_true", help="a CPU stands in for a GPU")
    options = parser.parse_args()
    begun = time.monotonic()
    if options.dry_run:
        stand_in.install()
    large = options.tool == "ncu" and not options.dry_run
    failed = []
    for name, call in operators("cuda", large).items():
        if options.only not in name:
            continue
        if time.monotonic() - begun > options.seconds:
            print(f"{name}: not begun, {options.seconds:.0f} s are over", flush=True)
            continue
        try:
            call()
            torch.cuda.synchronize()
            if options.tool == "ncu":
                torch.cuda.profiler.start()
                torch.cuda._sleep(1000)
                call()
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()
        except (ValueError, ImportError) as error:
            print(f"{name}: not there: {str(error)[:150]}", flush=True)
            continue
        except Exception as error:
            print(f"{name}: FAILED: {type(error).__name__}: {str(error)[:300]}", flush=True)
            failed.append(name)
            continue
        print(f"ran {name}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
