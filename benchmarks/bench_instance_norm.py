"""Instance norm, ReLU and the next convolution's reflect padding against eager PyTorch and torch.compile."""

from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run, differentiated, gap_of

EPS = 1e-6
Shape = tuple[int, int, int]  # batch, channels, side
GENERATORS: tuple[Shape, ...] = ((16, 64, 256), (16, 128, 128), (16, 256, 64))  # at full, half and quarter size


def cases(device: str) -> list[Case]:
    if device == "cpu":
        return [_case((1, 64, side), torch.float32, False, back) for back in (False, True) for side in (64, 128)]
    shapes = GENERATORS if device == "cuda" else ((1, 8, 8),)
    passes = (False, True) if device == "cuda" else (True,)
    rows = [_case(shape, torch.bfloat16, True, back) for shape in shapes for back in passes]
    # A residual block's second norm: no ReLU, the block's input added.
    return [*rows, *(_case(shapes[-1], torch.bfloat16, True, back, residual=True) for back in passes)]


def _case(shape: Shape, dtype: torch.dtype, channels_last: bool, backward: bool, residual: bool = False) -> Case:
    batch, channels, side = shape
    padding = 0 if residual else 1
    values = batch * channels * side**2
    padded = batch * channels * (side + 2 * padding) ** 2
    # Where a map does not fit the chip it is read twice, for the statistics and for the result.
    forward = (2 + residual) * values + padded
    # The gradient and the input are read twice, the input's gradient is written, and the residual's.
    back = 2 * padded + (3 + residual) * values
    return Case(
        f"{batch} x {channels} x {side}²{', residual' if residual else ''}, "
        f"{'forward + backward' if backward else 'forward'}",
        {
            "shape": shape,
            "dtype": dtype,
            "channels_last": channels_last,
            "backward": backward,
            "residual": residual,
            "padding": padding,
        },
        Work(bytes=dtype.itemsize * (forward + (back if backward else 0)), flops=10 * values * (1 + 2 * backward)),
        items=batch,
        series=f"{channels} channels, {'forward + backward' if backward else 'forward'}" if batch == 1 else "",
        size=side,
    )


def competitors(
    device: str, shape: Shape, dtype: torch.dtype, channels_last: bool, backward: bool, residual: bool, padding: int
) -> Competitors:
    """Name to a call for the padded result and, with ``backward``, the gradients of map, weight, bias and residual."""
    batch, channels, side = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.randn(batch, channels, side, side, device=device).to(dtype) for _ in range(1 + residual)]
    maps = [map_.contiguous(memory_format=layout).requires_grad_(backward) for map_ in maps]
    affine = [(torch.rand(channels, device=device) + 0.5).requires_grad_(backward) for _ in range(2)]
    added = maps[1] if residual else None

    def eager() -> Tensor:
        with torch.autocast(maps[0].device.type, enabled=False):
            result = F.instance_norm(maps[0], weight=affine[0], bias=affine[1], eps=EPS)
        result = F.relu(result) if added is None else result + added
        return F.pad(result, (padding,) * 4, mode="reflect") if padding else result

    def reference() -> Tensor:
        wide = maps[0].float()
        variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        result = (wide - mean) * (variance + EPS).rsqrt() * affine[0][:, None, None] + affine[1][:, None, None]
        result = F.relu(result) if added is None else result + added.float()
        return (F.pad(result, (padding,) * 4, mode="reflect") if padding else result).to(dtype)

    def ours() -> Tensor:
        instance_norm = import_module("fastinpaint.ops.instance_norm").instance_norm
        result: Tensor = instance_norm(
            maps[0], *affine, EPS, residual=added, relu=added is None, padding=padding, backend=name
        )
        return result

    name = "native" if device == "cpu" else "triton"
    leaves = [*maps, *affine]
    functions = {
        name: ours,
        "eager": eager,
        "float32 formula": reference,
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    calls: dict[str, Run | str] = {
        key: differentiated(function, leaves, backward) for key, function in functions.items()
    }
    gap = gap_of(ours)
    if gap is not None:
        calls[name] = gap
    return calls


BENCHMARK = Benchmark(
    title="Instance norm with ReLU and reflect padding of 1, or with a residual: per image",
    cases=cases,
    competitors=competitors,
    reference=("float32 formula",),
    # A gradient of the ReLU may flip where the normalised value is nearly 0.
    tolerance=lambda _, dtype, **__: 1e-4 if dtype == torch.float32 else 3e-2,
    notes=("The floor reads a map twice forward, as one that does not fit the chip must be.",),
)
