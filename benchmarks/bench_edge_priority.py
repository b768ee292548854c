"""The priority mask of an edge map against eager PyTorch and torch.compile."""

import torch

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run, differentiated, gap_of
from fastinpaint.ops.edge_priority import edge_priority


def cases(device: str) -> list[Case]:
    sizes = {"cpu": ((8, 64), (8, 256), (8, 1024)), "cuda": ((16, 256),), "dry": ((1, 16),)}
    return [_case(*size) for size in sizes[device]]


def _case(batch: int, side: int) -> Case:
    pixels = batch * side**2
    return Case(
        f"{batch} x {side}²",
        {"batch": batch, "side": side},
        Work(bytes=8 * pixels, flops=36 * pixels),  # two Gaussians of two axes and five taps
        items=batch,
        series="forward",
        size=side,
    )


def competitors(device: str, batch: int, side: int) -> Competitors:
    """Name to a call for the mask."""
    edges = (torch.rand(batch, 1, side, side, device=device) < 0.1).float()
    compiled = torch.compile(edge_priority, dynamic=False)
    ours = "native" if device == "cpu" else "triton"
    values = {
        ours: lambda: edge_priority(edges, backend=ours),
        "eager": lambda: edge_priority(edges, backend="reference"),
        "torch.compile": lambda: compiled(edges, backend="reference"),
    }
    calls: dict[str, Run | str] = {name: differentiated(value, [], False) for name, value in values.items()}
    gap = gap_of(values[ours])
    if gap is not None:
        calls[ours] = gap
    return calls


BENCHMARK = Benchmark(
    title="Edge priority, two Gaussians of 5 x 5: per image",
    cases=cases,
    competitors=competitors,
    reference=("eager",),
    tolerance=lambda *_, **__: 1e-5,
)
