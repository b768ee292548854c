"""Write a generator as a torch.export program or an ONNX file, and check the ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastinpaint.export.graphs import NetworkGraph, PictureGraph
from fastinpaint.extras import extra
from fastinpaint.files import atomic_write
from fastinpaint.models.generator import DIVISOR, INPUT_CHANNELS, InpaintGenerator
from fastinpaint.ops._backend import use_backend

NETWORK, PICTURE = "network", "picture"
INPUTS = {NETWORK: ("inputs",), PICTURE: ("image", "mask")}
OUTPUTS = {
    NETWORK: ("image", "image_half", "image_quarter", "gradients", "gradients_half", "gradients_quarter"),
    PICTURE: ("filled",),
}
OPSET = 18
TOLERANCE = 1e-4  # greatest absolute difference of a written file and PyTorch
_TRACED = (2, 64, 96)  # batch, height, width of the example that is traced
CHECKED = ((1, 64, 64), (3, 48, 80), (2, 128, 96))


@dataclass(frozen=True)
class Check:
    """Greatest absolute difference between a written file and PyTorch at a size that was not traced."""

    batch: int
    height: int
    width: int
    difference: float


def check_name(what: str) -> None:
    """Raise ValueError unless ``what`` is ``"network"`` or ``"picture"``."""
    if what not in INPUTS:
        raise ValueError(f"what to export must be one of {', '.join(INPUTS)}, got {what!r}")


def graph_of(generator: InpaintGenerator, what: str) -> nn.Module:
    """Return the module to export: ``"network"`` (11 channels in) or ``"picture"`` (image and mask in)."""
    check_name(what)
    return (NetworkGraph(generator) if what == NETWORK else PictureGraph(generator)).eval()


def export_program(generator: InpaintGenerator, what: str = NETWORK) -> torch.export.ExportedProgram:
    """Trace a generator with symbolic batch, height and width (the last two divisible by 16).

    Args:
        generator: Any width and attention; it is not changed.
        what: ``"network"`` or ``"picture"``, see `graphs.NetworkGraph` and `graphs.PictureGraph`.

    Returns:
        A program for the CPU in float32; ``torch.export.save`` writes it.
    """
    module = graph_of(generator, what)
    with use_backend("reference"):
        return trace(module, what)


@torch.no_grad()
def trace(module: nn.Module, what: str) -> torch.export.ExportedProgram:
    """Trace ``module``, whose inputs are those of ``what``, with the backends that serve at the time."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    height, width = (DIVISOR * torch.export.Dim(name, min=1, max=512) for name in ("rows", "columns"))
    shapes = {name: {0: batch, 2: height, 3: width} for name in INPUTS[what]}
    return torch.export.export(module, example_inputs(what, *_TRACED), dynamic_shapes=shapes)


def example_inputs(what: str, batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return random inputs of a graph: network inputs, or a picture in [0, 1] and a mask with a box."""
    generator = torch.Generator().manual_seed(seed)
    if what == NETWORK:
        return (torch.rand(batch, INPUT_CHANNELS, height, width, generator=generator) * 2 - 1,)
    coarse = torch.rand(batch, 3, height // 8, width // 8, generator=generator)
    image = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    mask = torch.zeros(batch, 1, height, width)
    mask[..., height // 4 : height // 2, width // 3 : width // 2] = 1
    return image, mask


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save a program for ``torch.export.load``."""
    with atomic_write(path) as temporary:
        torch.export.save(program, temporary)


def write_onnx(program: torch.export.ExportedProgram, path: Path, what: str) -> int:
    """Write a program as ONNX with its weights inside; return the opset.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    with extra("export", "writing an ONNX file"):
        import onnx
        import onnxscript  # noqa: F401
    exported = torch.onnx.export(
        program, (), input_names=list(INPUTS[what]), output_names=list(OUTPUTS[what]), opset_version=OPSET,
        dynamo=True, verbose=False,
    )  # fmt: skip
    if exported is None:
        raise ValueError("torch.onnx.export gave no program")
    with atomic_write(path) as temporary:
        exported.save(str(temporary), external_data=False)
    model = onnx.load(str(path), load_external_data=False)
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def check_onnx(
    path: Path, generator: InpaintGenerator, what: str, sizes: Sequence[tuple[int, int, int]] = CHECKED
) -> list[Check]:
    """Run the file in ONNX Runtime beside the generator in PyTorch, at (batch, height, width) of ``sizes``.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: A difference above 1e-4.
    """
    with extra("export", "checking an ONNX file"):
        import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        arrays = {name: x.numpy() for name, x in zip(INPUTS[what], inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, arrays)]

    return compare(path, generator, what, run, sizes)


def compare(
    path: Path,
    generator: InpaintGenerator,
    what: str,
    run: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    sizes: Sequence[tuple[int, int, int]],
) -> list[Check]:
    """Compare what ``run`` gets out of the file at ``path`` with the generator, at (batch, height, width) of ``sizes``.

    Raises:
        ValueError: A difference above 1e-4.
    """
    checks = []
    for size in sizes:
        inputs = example_inputs(what, *size, seed=1)
        pairs = zip(run(inputs), run_generator(generator, what, inputs), strict=True)
        checks.append(Check(*size, max(float((a - b).abs().max()) for a, b in pairs)))
    bad = [check for check in checks if not check.difference <= TOLERANCE]
    if bad:
        raise ValueError(f"{path} differs from PyTorch by more than {TOLERANCE}: {bad[0]}")
    return checks


@torch.no_grad()
def run_generator(generator: InpaintGenerator, what: str, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Return what the graph should give, from the generator itself."""
    if what == NETWORK:
        output = generator(*inputs)
        return (*output.images, *output.gradients)
    from fastinpaint.inference.inpainter import Inpainter

    image, mask = inputs
    return (Inpainter(generator, "cpu", max_side=0)(image, mask > 0.5),)
