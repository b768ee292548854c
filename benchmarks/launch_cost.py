"""``python -m benchmarks.launch_cost``: what the host does between an operator's call and the launch of its kernels.

On a CPU the Triton backend is called with small CPU tensors, and launching a kernel does nothing. In the figure are the
operator's checks, the choice of a backend, torch.library, autograd, the results' memory (the CPU's allocator, not the
caching one of CUDA) and the launchers' Python. Not in it are Triton's own launch, CUDA's, and making a GPU current. The
time is that of the calling thread on its core, the least of the samples: other processes only add to it.

With ``--device cuda`` nothing is replaced: small inputs, so that kernels end before the host has launched the next, and
the wall clock until the call returns, the median of the samples.

``torch.library`` is an operator of the same kind that only allocates its result: what no operator can do without.
``launchers`` are the functions that launch, called directly.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend
from fastinpaint.ops._registration import custom_op, register
from fastinpaint.ops.canny import canny
from fastinpaint.ops.edge_priority import edge_priority
from fastinpaint.ops.instance_norm import instance_norm
from fastinpaint.ops.patch_attention import patch_attention
from fastinpaint.ops.pooled_attention import pooled_attention
from fastinpaint.ops.sobel_edges import sobel_edges
from fastinpaint.ops.structure_loss import pyramid_structure_loss

Call = Callable[[], Any]
SIDE = 16


def empty_kernels() -> None:
    """Make launches of Triton kernels do nothing, and every configuration as fast as the others."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for kind in (JITFunction, InterpretedFunction):
        kind.run = lambda self, *args, grid, warmup, **options: None
    Autotuner._bench = lambda self, *args, config, **options: [0.0] * 3
    Autotuner.check_disk_cache = lambda self, key, configs, measure_all: bool(measure_all())
    _backend._triton_gap = lambda *_: None  # type: ignore[assignment]
    _backend._ORDER["cpu"] = _backend._ORDER["cuda"]


@custom_op("fastinpaint_benchmark::nothing")
def nothing(x: Tensor) -> Tensor:
    """Allocate a result."""
    return torch.empty_like(x)


@custom_op("fastinpaint_benchmark::nothing_backward")
def nothing_backward(x: Tensor) -> Tensor:
    """Allocate a gradient."""
    return torch.empty_like(x)


register(
    "fastinpaint_benchmark", "nothing", fake=torch.empty_like, backward_fake=torch.empty_like,
    backward=lambda namespace, ctx, grad: torch.ops.fastinpaint_benchmark.nothing_backward(grad),
)  # fmt: skip


def operators(device: torch.device) -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor], Call | None]]:
    """Name, the operator of its leaves, the leaves, and its launchers forward."""
    from fastinpaint_kernels import edge_priority as priority_kernels
    from fastinpaint_kernels import instance_norm as norm_kernels
    from fastinpaint_kernels import patch_attention as patch_kernels
    from fastinpaint_kernels import pooled_attention as pooled_kernels
    from fastinpaint_kernels import sobel_edges as sobel_kernels

    image = torch.rand(1, 3, SIDE, SIDE, device=device)
    yield "torch.library", torch.ops.fastinpaint_benchmark.nothing, [image], None
    yield (
        "sobel_edges",
        sobel_edges,
        [image],
        lambda: sobel_kernels.sobel_edges_forward(image),
    )
    edges = image[:, :1] > 0.5
    bytes_ = edges.to(torch.uint8)
    yield (
        "edge_priority", lambda: edge_priority(edges), [],
        lambda: priority_kernels.edge_priority(bytes_, 5, 1.0, 2),
    )  # fmt: skip
    rows = [torch.randn(1, n, 4, device=device) for n in (64, 16, 16)]
    yield (
        "pooled_attention", pooled_attention, rows,
        lambda: pooled_kernels.pooled_attention_forward(*rows),
    )  # fmt: skip
    features = torch.randn(1, 8, 8, 8, device=device)
    yield (
        "patch_attention", patch_attention, [features],
        lambda: patch_kernels.patch_attention_forward(features, 3, 2, 10.0, True),
    )  # fmt: skip
    weight, bias = torch.randn(2, 8, device=device)
    yield (
        "instance_norm", partial(instance_norm, relu=True, padding=1), [features, weight, bias],
        lambda: norm_kernels.instance_norm_forward(features, weight, bias, None, None, 1e-6, True, 1),
    )  # fmt: skip
    maps = [torch.randn(1, 6, side, side, device=device) for side in (SIDE, SIDE // 2, SIDE // 4)]
    masks = [map_[:, :1] > 0.5 for map_ in maps]

    def loss(*maps: Tensor) -> Tensor:
        return pyramid_structure_loss(image, maps, edges=masks)

    yield "structure_loss", loss, maps, None
    gray = image[:0, :1] if device.type == "cpu" else image[:, :1]  # of no image the CPU's kernel computes nothing
    yield "canny", lambda: canny(gray, backend="native"), [], None


def microseconds(call: Call, device: torch.device, calls: int, rounds: int) -> float:
    """Of a call: the median of the rounds on a GPU; on a CPU the least, for other work there only adds."""
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    samples = []
    for _ in range(rounds + 1):
        start = clock()
        for _ in range(calls):
            call()
        samples.append((clock() - start) / calls)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (statistics.median if device.type == "cuda" else min)(samples[1:]) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch_cost", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--calls", type=int, default=50, help="calls of a sample")
    parser.add_argument("--rounds", type=int, default=20, help="samples")
    parser.add_argument("--dry-run", action="store_true", help="one call of each on the CPU, whatever the device")
    options = parser.parse_args()
    if options.dry_run:
        options.calls = options.rounds = 1
    device = torch.device("cpu" if options.dry_run else options.device)
    if device.type == "cpu":
        empty_kernels()
    print(f"microseconds of a call on {device}: forward without a gradient, forward + backward, the launchers alone")
    for name, operator, leaves, launchers in operators(device):
        if options.only not in name:
            continue
        calls: list[Call | None] = [*_calls(operator, leaves), launchers]
        found = ("-" if call is None else f"{_measure(call, device, options):.0f}" for call in calls)
        print(f"{name:18}{'  '.join(text.rjust(6) for text in found)}", flush=True)


def _measure(call: Call, device: torch.device, options: argparse.Namespace) -> float:
    return microseconds(call, device, options.calls, options.rounds)


def _calls(operator: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Call, Call | None]:
    """The operator without a gradient, and with the gradients of its leaves."""
    tracked = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    slopes: list[Tensor] = []

    def forward() -> Tensor:
        with torch.no_grad():
            return operator(*leaves)

    def both() -> Any:
        result = operator(*tracked)
        if not slopes:
            slopes.append(torch.ones_like(result))
        return torch.autograd.grad(result, tracked, slopes[0])

    return forward, both if leaves else None


if __name__ == "__main__":
    main()
