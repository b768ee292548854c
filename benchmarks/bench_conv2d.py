"""Convolutions of the generator (width 64) and of VGG-19 by Winograd's method, beside PyTorch's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run, differentiated, gap_of
from fastinpaint.ops.conv2d import conv2d

Shape = tuple[int, int, int, int]  # batch, channels, side, kernel
LAYERS: dict[str, Shape] = {
    "residual block": (1, 256, 64, 3),
    "embedding, full size": (1, 64, 256, 5),
    "embedding, quarter size": (1, 256, 64, 5),
    "VGG-19 conv1_2": (8, 64, 96, 3),
    "VGG-19 conv4_2": (8, 512, 12, 3),
    "narrow": (1, 32, 128, 3),
}


def cases(device: str) -> list[Case]:
    layers = LAYERS if device != "dry" else {"narrow": (1, 32, 8, 3)}
    return [_case(name, shape, backward) for name, shape in layers.items() for backward in (False, True)]


def _case(name: str, shape: Shape, backward: bool) -> Case:
    batch, channels, side, kernel = shape
    values = batch * channels * side**2
    passes = 3 if backward else 1  # the result; with `backward` the gradients of map and weight
    return Case(
        f"{name}: {batch} x {channels} x {side}², k = {kernel}, {'forward + backward' if backward else 'forward'}",
        {"shape": shape, "backward": backward},
        Work(
            bytes=4 * passes * (2 * values + channels**2 * kernel**2),
            flops=2 * passes * values * channels * kernel**2,  # of a direct convolution
        ),
        items=batch,
        size=side,
    )


def competitors(device: str, shape: Shape, backward: bool) -> Competitors:
    """Name to a call for the result and, with ``backward``, the gradients of map and weight."""
    batch, channels, side, kernel = shape
    x = torch.randn(batch, channels, side, side, device=device)
    weight = torch.randn(channels, channels, kernel, kernel, device=device) / (channels * kernel**2) ** 0.5
    last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    leaves = {"contiguous": [x, weight], "channels-last": [last, weight_last], "ours": [last.clone(), weight.clone()]}
    for tensors in leaves.values():
        for tensor in tensors:
            tensor.requires_grad_(backward)

    def ours() -> Tensor:
        return conv2d(*leaves["ours"], padding=kernel // 2, backend="native")

    def run(layout: str) -> Run:
        map_, taps = leaves[layout]
        return differentiated(lambda: F.conv2d(map_, taps, padding=kernel // 2), leaves[layout], backward)

    calls: dict[str, Run | str] = {
        "native": differentiated(ours, leaves["ours"], backward),
        "eager": run("contiguous"),
        "eager, channels-last": run("channels-last"),
    }
    gap = gap_of(ours)
    if gap is not None:
        calls["native"] = gap
    return calls


BENCHMARK = Benchmark(
    title="Convolution of stride 1, as many channels out as in, float32: per image",
    cases=cases,
    competitors=competitors,
    ours={"cpu": "native", "cuda": "eager, channels-last"},
    reference=("eager",),
    tolerance=lambda *_, **__: 1e-4,
    notes=(
        "Ours is channels-last; eager is PyTorch's convolution. FLOP are those of a direct convolution, so Winograd's "
        "method may exceed the processor's.",
    ),
)
