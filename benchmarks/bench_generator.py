"""The whole generator beside its three attentions, which must stay a small share of it."""

import os
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Rivals, Run
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.layers import PooledAttention
from fastinpaint.ops.pooled_attention import pooled_attention

EAGER_SIDE = 256  # pixels


def cases(device: str) -> list[Case]:
    sizes = [(16, 256)] if device == "cuda" else [(1, 128), (1, 256), (1, 512)]
    return [
        Case(
            f"{batch} x {side}²",
            {"batch": batch, "side": side},
            Work(bytes=4 * batch * (11 + 9 * (1 + 1 / 4 + 1 / 16)) * side**2, flops=155e9 * batch * (side / 256) ** 2),
            items=batch,
            series=f"batch {batch}",
            size=side,
        )
        for batch, side in sizes
    ]


def attention_inputs(generator: InpaintGenerator, inputs: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value of each attention in a forward pass."""
    caught: list[tuple[Tensor, Tensor, Tensor]] = []

    def catch(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, PooledAttention)
        caught.append(layer.operands(args[0], padded=True))

    hooks = [m.register_forward_pre_hook(catch) for m in generator.modules() if isinstance(m, PooledAttention)]
    with torch.no_grad():
        generator(inputs)
    for hook in hooks:
        hook.remove()
    return caught


def rivals(device: str, batch: int, side: int) -> Rivals:
    """Name to a call: the generator, and the attentions of the same pass alone."""
    generator = InpaintGenerator().to(device).eval()
    inputs = torch.randn(batch, 11, side, side, device=device)
    operands = attention_inputs(generator, inputs)

    def whole() -> tuple[Tensor, ...]:
        with torch.no_grad():
            images, gradients = generator(inputs)
        return (*images, *gradients)

    def whole_eager() -> tuple[Tensor, ...]:
        with mock.patch.dict(os.environ, FASTINPAINT_BACKEND="reference"):
            return whole()

    def attentions(backend: str) -> Run:
        def run() -> list[Tensor]:
            with torch.no_grad():
                return [pooled_attention(*tensors, backend=backend) for tensors in operands]

        return run

    large = "their matrices of scores take 5 GiB"
    return {
        "whole": whole,
        "its attentions": attentions("auto"),
        "whole, eager attention": whole_eager if side <= EAGER_SIDE else large,
        "its attentions, eager": attentions("reference") if side <= EAGER_SIDE else large,
    }


BENCHMARK = Benchmark(
    title="The generator, forward: per image",
    cases=cases,
    rivals=rivals,
    ours={"cpu": "whole", "cuda": "whole"},
    truth=("whole, eager attention", "whole"),
    tolerance=lambda device, **_: 1e-4 if device == "cpu" else 1e-3,  # a GPU's attention multiplies in TensorFloat-32
    differs={name: "it is a part of the whole" for name in ("its attentions", "its attentions, eager")},
    notes=("The ratio of the attentions is their share of the whole.",),
)
