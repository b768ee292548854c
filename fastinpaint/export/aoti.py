"""A generator compiled ahead of time by AOTInductor, its native kernels called as operators, without Python."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastinpaint.export.write import CHECKED, NETWORK, Check, check_name, compare, trace
from fastinpaint.files import atomic_write
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_known_input
from fastinpaint.ops._backend import NATIVE_ERROR

NAMESPACE = "fastinpaint"  # of the native operators


class Network(nn.Module):
    """(B, 11, H, W) as ``assemble_input`` makes it -> images at full, half and quarter size, then gradients."""

    def __init__(self, generator: InpaintGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return three images (B, 3, h, w) in [-1, 1] and three gradient maps (B, 6, h, w)."""
        output = self.generator(inputs)
        return (*output.images, *output.gradients)


class Picture(nn.Module):
    """A picture and its hole -> the filled picture, from the known pixels alone; see `graphs.PictureGraph`."""

    def __init__(self, generator: InpaintGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], (B, 1, H, W) above 0.5 in the hole -> (B, 3, H, W) in [0, 1]."""
        result = self.generator(assemble_known_input(image * 2 - 1, (mask > 0.5).to(image.dtype))).images[0]
        return torch.where(mask > 0.5, (result.clamp(-1, 1) + 1) / 2, image)


def write_package(generator: InpaintGenerator, path: Path, what: str = NETWORK) -> list[str]:
    """Compile a generator for this processor, batch, height and width symbolic; needs a C++ compiler.

    Args:
        generator: Any width and attention; it is not changed.
        path: Ends in ``.pt2``.
        what: ``"network"`` or ``"picture"``, see `Network` and `Picture`.

    Returns:
        Names of the operators of this package that the compiled code calls: whoever loads it needs ``fastinpaint._C``.

    Raises:
        RuntimeError: The extension is not there, or torch finds no C++ compiler.
    """
    check_name(what)
    if NATIVE_ERROR is not None:
        raise RuntimeError(f"an AOTInductor package calls the native kernels, which are not there: {NATIVE_ERROR}")
    copied = copy.deepcopy(generator).cpu().float().eval().requires_grad_(False)
    program = trace((Network if what == NETWORK else Picture)(copied).eval(), what)
    names = sorted(set(_operators(program.graph_module)))
    with atomic_write(path) as temporary:
        torch._inductor.aoti_compile_and_package(program, package_path=str(temporary))
    return names


def _operators(module: torch.fx.GraphModule) -> Iterator[str]:
    """Names of this package's operators in a graph and in its subgraphs."""
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == NAMESPACE:
            yield str(node.target)
    for child in module.children():
        if isinstance(child, torch.fx.GraphModule):
            yield from _operators(child)


def check_package(
    path: Path, generator: InpaintGenerator, what: str, sizes: Sequence[tuple[int, int, int]] = CHECKED
) -> list[Check]:
    """Run the package beside the generator in PyTorch, at (batch, height, width) of ``sizes``.

    Raises:
        ValueError: A difference above 1e-4.
    """
    compiled = torch._inductor.aoti_load_package(str(path))

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        outputs = compiled(*inputs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return compare(path, generator, what, run, sizes)
