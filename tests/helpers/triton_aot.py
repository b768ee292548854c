"""Compile every Triton kernel for GPUs that are not there, and read what it needs.

The launchers run with CPU tensors while a stand-in for Triton's driver names the target and every launch ends after
compilation, so what is compiled is what a GPU would be given: the same specialisation, every tuning configuration.

``python -m tests.helpers.triton_aot OUT.json [80 90 ...] [OPERATOR ...] [--first N]`` writes the table for the
installed Triton, of the first N cases of each operator or of all; with ``tests/helpers/triton_resources.json`` as OUT
it replaces the recorded one and keeps those of other versions.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastinpaint_kernels._launch import TunedFamilies

RECORDED = Path(__file__).parent / "triton_resources.json"
# Compute capability: bytes of shared memory that one block may have, from the CUDA programming guide.
SHARED_LIMITS = {80: 166_912, 90: 232_448, 120: 101_376}

# "operator / case / kernel / configuration / sm" -> registers, bytes of stack, bytes of shared memory
Table = dict[str, list[int]]


class _StandIn:
    """The part of a driver that compilation asks; the device number is the capability, so caches stay apart."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def _resources(kernel) -> list[int]:
    """Registers, stack and shared memory of a compiled kernel, from its machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return [found["REG"], found["STACK"] + found["LOCAL"], kernel.metadata.shared]


def _structure_loss() -> Iterator[tuple[str, Callable[[], object]]]:
    from fastinpaint_kernels import structure_loss as kernels

    image = torch.empty(2, 3, 64, 64)
    halves, odd = (64, 32, 16), (64, 37, 11)
    for name, dtype, layout, sides in (
        ("float32", torch.float32, torch.contiguous_format, halves),
        ("bfloat16 channels-last", torch.bfloat16, torch.channels_last, halves),
        ("float16 odd sides", torch.float16, torch.contiguous_format, odd),
    ):
        edges = [torch.empty(2, 1, n, n, dtype=torch.bool) for n in sides]
        predictions = [torch.empty(2, 6, n, n, dtype=dtype).to(memory_format=layout) for n in sides]

        def run(predictions=predictions, edges=edges):
            terms, *kept = kernels.structure_loss_forward(image, predictions, edges, 20.0, 0.1)
            kernels.structure_loss_backward(terms, *kept, predictions)

        yield name, run


def _sobel_edges() -> Iterator[tuple[str, Callable[[], object]]]:
    from fastinpaint_kernels import sobel_edges as kernels

    for dtype in (torch.float32, torch.bfloat16):
        for name, layout in (("", torch.contiguous_format), (" channels-last", torch.channels_last)):
            image = torch.empty(2, 3, 64, 64, dtype=dtype).to(memory_format=layout)

            def run(image=image):
                kernels.sobel_edges_backward(kernels.sobel_edges_forward(image))

            yield f"{str(dtype).removeprefix('torch.')}{name}", run


def _edge_priority() -> Iterator[tuple[str, Callable[[], object]]]:
    from fastinpaint_kernels import edge_priority as kernels

    for dtype in (torch.bool, torch.float32, torch.bfloat16):
        edges = torch.empty(2, 1, 64, 64, dtype=dtype)
        yield str(dtype).removeprefix("torch."), lambda edges=edges: kernels.edge_priority(edges, 5, 1.0, 2)


def _pooled_attention() -> Iterator[tuple[str, Callable[[], object]]]:
    from fastinpaint_kernels import pooled_attention as kernels

    for dtype, width in (
        (torch.bfloat16, 4),
        (torch.float32, 4),
        (torch.bfloat16, 8),
        (torch.bfloat16, 16),
        (torch.bfloat16, 32),
        (torch.bfloat16, 33),  # rows that no vector load fits
        (torch.float16, 64),
        (torch.float32, 16),
        (torch.float32, 64),
    ):
        inputs = [torch.empty(2, rows, width, dtype=dtype) for rows in (256, 128, 128)]

        def run(inputs=inputs):
            output, lse = kernels.pooled_attention_forward(*inputs)
            kernels.pooled_attention_backward(output, *inputs, output, lse)

        yield f"{str(dtype).removeprefix('torch.')} width {width}", run


def _patch_attention() -> Iterator[tuple[str, Callable[[], object]]]:
    from fastinpaint_kernels import patch_attention as kernels

    for dtype, channels, side in ((torch.bfloat16, 64, 16), (torch.float16, 64, 16), (torch.bfloat16, 32, 15)):
        if driver.active.capability != 90:
            continue
        features = torch.zeros(2, channels, side, side, dtype=dtype)

        def run(features=features):
            kernels.patch_attention_forward(features, 3, 2, 10.0, False, path="flash")

        yield f"flash, {str(dtype).removeprefix('torch.')} {channels} x {side} x {side}", run

    for dtype in (torch.float32, torch.bfloat16):
        for shape, size in (((1, 64, 16, 16), 3), ((1, 1, 128, 128), 1)):  # the second for its 4096 keys
            features = torch.zeros(shape, dtype=dtype)

            def run(features=features, size=size):
                output, lse = kernels.patch_attention_forward(features, size, 2, 10.0, False)
                kernels.patch_attention_backward(output, features, lse, size, 2, 10.0, False)

            yield f"{str(dtype).removeprefix('torch.')} {' x '.join(map(str, shape))}", run


def _instance_norm() -> Iterator[tuple[str, Callable[[], object]]]:
    from fastinpaint_kernels import instance_norm as kernels

    last, planes = torch.channels_last, torch.contiguous_format
    for name, dtype, layout, padding, kind in (
        ("bfloat16 channels-last relu", torch.bfloat16, last, 0, "relu"),
        ("bfloat16 channels-last relu, padding 1", torch.bfloat16, last, 1, "relu"),
        ("bfloat16 channels-last residual, padding 2", torch.bfloat16, last, 2, "residual"),
        ("bfloat16 channels-last residual scale relu, padding 2", torch.bfloat16, last, 2, "residual scale relu"),
        ("float32 channels-last residual relu, padding 2", torch.float32, last, 2, "residual relu"),
        ("float32 contiguous relu, padding 1", torch.float32, planes, 1, "relu"),
        ("bfloat16 contiguous relu", torch.bfloat16, planes, 0, "relu"),
        ("float16 contiguous residual scale relu, padding 2", torch.float16, planes, 2, "residual scale relu"),
    ):
        x = torch.empty(16, 64, 64, 64, dtype=dtype).to(memory_format=layout)
        weight = torch.empty(64)
        residual = torch.empty(16, 64, 68, 68, dtype=dtype).to(memory_format=layout)[:, :, 2:-2, 2:-2]
        residual, scale = residual if "residual" in kind else None, weight[:1] if "scale" in kind else None
        relu = "relu" in kind

        def run(x=x, weight=weight, residual=residual, scale=scale, relu=relu, padding=padding):
            output, *kept = kernels.instance_norm_forward(x, weight, weight, residual, scale, 1e-6, relu, padding)
            wanted = residual is not None and padding > 0
            kernels.instance_norm_backward(output, x, *kept, weight, weight, residual, scale, relu, padding, wanted)

        yield name, run


CASES = {
    "structure_loss": _structure_loss,
    "sobel_edges": _sobel_edges,
    "edge_priority": _edge_priority,
    "pooled_attention": _pooled_attention,
    "patch_attention": _patch_attention,
    "instance_norm": _instance_norm,
}


def compile_all(capabilities: Iterable[int], operators: Iterable[str], first: int | None = None) -> Table:
    """Compile the first or all cases of the given operators for the given compute capabilities."""
    table: Table = {}
    launch, tuned = JITFunction.run, TunedFamilies._launch
    where = ""

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        sizes = {k: v for k, v in kwargs.items() if k.startswith("BLOCK") or k in ("POLY", "num_warps", "num_stages")}
        chosen = " ".join(f"{name}={value}" for name, value in sorted(sizes.items()))
        table[f"{where} / {self.__name__} / {chosen} / sm_{driver.active.capability}"] = _resources(kernel)

    def every_configuration(self, grid, arguments):
        family = self.family(dict(zip(self.names, arguments, strict=False)))
        for config in self.tuners[family].configs:
            self.kernel[grid](*arguments, **config.all_kwargs())

    JITFunction.run, TunedFamilies._launch = compile_only, every_configuration
    try:
        for capability in capabilities:
            driver.set_active(_StandIn(capability))
            for op in operators:
                for case, run in islice(CASES[op](), first):
                    where = f"{op} / {case}"
                    run()
    finally:
        JITFunction.run, TunedFamilies._launch = launch, tuned
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("chosen", nargs="*")
    parser.add_argument("--first", type=int)
    options = parser.parse_args()
    out = options.out
    capabilities = [int(word) for word in options.chosen if word.isdigit()] or list(SHARED_LIMITS)
    operators = [word for word in options.chosen if not word.isdigit()] or list(CASES)
    recorded = json.loads(out.read_text()) if out.exists() else {}
    recorded[triton.__version__] = compile_all(capabilities, operators, options.first)
    lines = (
        f'"{version}": {{\n' + ",\n".join(f'  "{k}": {v}' for k, v in sorted(recorded[version].items())) + "\n}"
        for version in sorted(recorded)
    )
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
