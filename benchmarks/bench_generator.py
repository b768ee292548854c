"""The whole generator beside its three attentions, which must stay a small share of it."""

import copy
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run
from fastinpaint.inference.precision import layout_on
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.layers import PooledAttention
from fastinpaint.ops.pooled_attention import pooled_attention

EAGER_SIDE = 256  # pixels


def cases(device: str) -> list[Case]:
    float32, bfloat16 = torch.float32, torch.bfloat16
    rows = {
        "cpu": [(1, side, float32, 64) for side in (128, 256, 512)],
        "cuda": [(16, 256, bfloat16, 64), (1, 256, bfloat16, 64), (16, 256, float32, 64)],
        "dry": [(1, 16, bfloat16, 16)],
    }
    return [_case(*row) for row in rows[device]]


def _case(batch: int, side: int, dtype: torch.dtype, width: int) -> Case:
    passed = (11 + 9 * (1 + 1 / 4 + 1 / 16)) * side**2
    return Case(
        f"{batch} x {side}²{'' if dtype == torch.float32 else ', bfloat16'}",
        {"batch": batch, "side": side, "dtype": dtype, "width": width},
        Work(
            bytes=dtype.itemsize * batch * passed,
            flops=155e9 * batch * (side / 256) ** 2 * (width / 64) ** 2,
            dtype=str(dtype).removeprefix("torch."),
        ),
        items=batch,
        series=f"batch {batch}" if dtype == torch.float32 else "",
        size=side,
    )


def drawn_generator(device: str, width: int = 64) -> InpaintGenerator:
    """A generator whose attentions count: their scale, which starts at 0, is 1."""
    with torch.device(device):
        generator = InpaintGenerator(width)
    for layer in generator.modules():
        if hasattr(layer, "gamma"):
            nn.init.ones_(layer.gamma)  # type: ignore[arg-type]
    return generator.to(device)


def reference_backend() -> AbstractContextManager[Any]:
    """All operators by their reference."""
    return mock.patch.dict(os.environ, FASTINPAINT_BACKEND="reference")


def attention_inputs(run: Callable[[], object], generator: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value of each attention in a forward pass."""
    caught: list[tuple[Tensor, Tensor, Tensor]] = []

    def catch(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, PooledAttention)
        caught.append(layer.operands(args[0], padded=True))

    hooks = [m.register_forward_pre_hook(catch) for m in generator.modules() if isinstance(m, PooledAttention)]
    run()
    for hook in hooks:
        hook.remove()
    return caught


def competitors(device: str, batch: int, side: int, dtype: torch.dtype, width: int) -> Competitors:
    """Name to a call: the generator, and the attentions and convolutions of the same pass alone.

    Ours keeps activations in the layout that the inpainter chooses; eager keeps them contiguous.
    """
    plain = drawn_generator(device, width).eval()
    layout = layout_on(torch.device(device))
    generator = copy.deepcopy(plain).to(memory_format=layout)  # type: ignore[call-overload]
    inputs = torch.randn(batch, 11, side, side, device=device)
    laid_out = inputs.contiguous(memory_format=layout)

    def forward(network: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            images, gradients = network(x)
        return (*images, *gradients)

    def eager() -> tuple[Tensor, ...]:
        with reference_backend():
            return forward(plain, inputs)

    compiled = torch.compile(generator, dynamic=False)
    operands: list[tuple[Tensor, Tensor, Tensor]] = []
    gap = ""
    try:
        operands = attention_inputs(lambda: forward(generator, laid_out), generator)
    except (AssertionError, TypeError, AttributeError, ValueError) as error:
        gap = f"its attentions take their operands otherwise: {type(error).__name__}"

    def attentions(backend: str) -> Run | str:
        if gap:
            return gap

        def run() -> list[Tensor]:
            with torch.no_grad():
                return [pooled_attention(*tensors, backend=backend) for tensors in operands]

        return run

    large = "their matrices of scores take 5 GiB"
    calls: dict[str, Run | str] = {
        "whole": lambda: forward(generator, laid_out),
        "its attentions": attentions("auto"),
        "whole, eager attention" if device == "cpu" else "whole, eager": eager if side <= EAGER_SIDE else large,
        "its attentions, eager": attentions("reference") if side <= EAGER_SIDE else large,
        "bare convolutions": bare_convolutions(lambda: forward(generator, laid_out), generator),
    }
    if device == "cuda":
        calls["torch.compile"] = lambda: forward(compiled, laid_out)
    return calls


def bare_convolutions(run: Callable[[], object], generator: nn.Module) -> Run:
    """The convolutions of a forward pass alone, each on an input such as it had, without padding and biases."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    caught: list[tuple[Any, Tensor]] = []

    def catch(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught.append((layer, args[0].detach().to(output.dtype)))

    hooks = [m.register_forward_hook(catch) for m in generator.modules() if isinstance(m, kinds)]
    run()
    for hook in hooks:
        hook.remove()
    calls: list[Run] = []
    for layer, x in caught:
        up = isinstance(layer, nn.ConvTranspose2d)
        function = nn.functional.conv_transpose2d if up else nn.functional.conv2d
        weight = layer.weight.detach().to(x.dtype)
        options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        calls.append(lambda x=x, f=function, w=weight, o=options: f(x, w, **o))  # type: ignore[misc]

    def convolve() -> Tensor:
        with torch.no_grad():
            return [call() for call in calls][-1]

    return convolve


BENCHMARK = Benchmark(
    title="The generator, forward: per image",
    cases=cases,
    competitors=competitors,
    ours={"cpu": "whole", "cuda": "whole"},
    reference=("whole, eager attention", "whole, eager", "whole"),
    tolerance=lambda device, dtype, **_: 0.1 if dtype == torch.bfloat16 else 1e-4 if device == "cpu" else 5e-3,
    differs={
        "its attentions": "it is a part of the whole",
        "its attentions, eager": "it is a part of the whole",
        "bare convolutions": "it is a part of the whole",
    },
    notes=(
        "The ratio of the attentions is their share of the whole. Their scale gamma is 1.",
        "Ours is channels-last, eager contiguous with reference backends. On CUDA, bfloat16 is autocast; float32 "
        "convolutions may use TensorFloat-32, as torch has it by default.",
    ),
    sets=1,
    rate=True,
)
