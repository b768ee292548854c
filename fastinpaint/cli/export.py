"""``fastinpaint export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

SUMMARY = "write a model as ONNX, as a torch.export program, or compiled by AOTInductor"
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".aoti.pt2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", type=Path, required=True, help="folder with model.safetensors and config.json")
    parser.add_argument("--output", type=Path, required=True, help="folder to write network.onnx, picture.onnx, ... to")
    parser.add_argument(
        "--format",
        nargs="+",
        default=["onnx", "torch"],
        choices=FORMATS,
        help="what to write; aoti: compiled for this processor, with the native kernels (default: onnx torch)",
    )
    parser.add_argument(
        "--graphs", nargs="+", default=["network", "picture"], choices=("network", "picture"),
        help="network: 11 channels in, images and gradients out; picture: image and mask in, filled picture out",
    )  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with PyTorch")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist; refused otherwise")


def run(options: argparse.Namespace) -> int:
    """Write the files; check and describe each."""
    import torch

    from fastinpaint.export import aoti, write
    from fastinpaint.models.generator import InpaintGenerator

    targets = {
        (what, form): options.output / f"{what}{FORMATS[form]}" for what in options.graphs for form in options.format
    }
    existing = next((path for path in targets.values() if path.exists()), None)
    if existing and not options.overwrite:
        raise FileExistsError(f"{existing} exists already; --overwrite replaces it")
    generator = InpaintGenerator.from_pretrained(options.model, dtype=torch.float32)
    for what in options.graphs:
        program = write.export_program(generator, what) if set(options.format) - {"aoti"} else None
        for form in options.format:
            path = targets[what, form]
            checks: Sequence[write.Check] = []
            if form == "aoti":
                operators = aoti.write_package(generator, path, what)
                _describe(path, f", calls {', '.join(operators)}")
                checks = [] if options.no_check else aoti.check_package(path, generator, what)
            elif program is not None and form == "torch":
                write.write_program(program, path)
                _describe(path)
            elif program is not None:
                opset = write.write_onnx(program, path, what)
                _describe(path, f", opset {opset}, inputs {', '.join(write.INPUTS[what])}")
                checks = [] if options.no_check else write.check_onnx(path, generator, what)
            for check in checks:
                engine = "AOTInductor" if form == "aoti" else "ONNX Runtime"
                size = f"{check.batch} x {check.height} x {check.width}"
                print(f"  {size}: {engine} within {check.difference:.1e} of PyTorch")
    return 0


def _describe(path: Path, more: str = "") -> None:
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB{more}")
