"""Pooled attention against eager PyTorch, torch.compile, torch's fused attention and FlexAttention."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Rivals, Run, differentiated
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.pooled_attention import pooled_attention

LARGEST_MATRIX = 2**28  # scores, 1 GiB; what keeps them all is left out above


def cases(device: str) -> list[Case]:
    float32, bfloat16 = torch.float32, torch.bfloat16
    if device == "cuda":
        rows = [
            (16, 256, width, dtype, backward)
            for width in (16, 8, 4)
            for dtype, backward in ((bfloat16, False), (bfloat16, True), (float32, True))
        ]
    else:
        widest = [(1, side, 4, float32, backward) for backward in (False, True) for side in (64, 128, 256, 512)]
        rows = [*widest, (1, 1024, 4, float32, False)]
        rows += [(1, 256, width, float32, backward) for width in (8, 16) for backward in (False, True)]
        rows += [(4, 256, 4, float32, False), (16, 256, 8, float32, True), (16, 256, 16, float32, True)]
    listed = [_case(*row) for row in rows]
    if device == "cpu":  # not the generator's: as wide as the kernel takes, where the products decide
        listed += [_case(1, 256, 64, float32, backward, shape=(1024, 1024)) for backward in (False, True)]
    return listed


def _case(
    batch: int, side: int, width: int, dtype: torch.dtype, backward: bool, shape: tuple[int, int] | None = None
) -> Case:
    """Of width 4, 8 or 16 is the generator's attention at full, half and quarter size of an image."""
    queries, keys = shape or ((side * 2 // width) ** 2, (side // width) ** 2)
    scores = batch * queries * keys
    passed = batch * (2 * queries + 2 * keys) * width * dtype.itemsize
    return Case(
        f"{batch} x ({queries}, {keys}, {width}){'' if dtype == torch.float32 else ', bfloat16'}, "
        f"{'forward + backward' if backward else 'forward'}",
        {"batch": batch, "queries": queries, "keys": keys, "width": width, "dtype": dtype, "backward": backward},
        Work(
            bytes=(3 if backward else 1) * passed,
            flops=(14 if backward else 4) * scores * width,  # two products; scores again and four more
            exponentials=(1 + backward) * scores,
            dtype=str(dtype).removeprefix("torch."),
        ),
        items=batch,
        series=f"width 4, {'forward + backward' if backward else 'forward'}" if (batch, width) == (1, 4) else "",
        size=side,
    )


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``scaled_dot_product_attention`` with one head and no scale."""
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]


def rivals(device: str, batch: int, queries: int, keys: int, width: int, dtype: torch.dtype, backward: bool) -> Rivals:
    """Name to a call for the output, or for it and the gradients of query, key and value."""
    leaves = [
        torch.randn(batch, count, width, device=device).to(dtype).requires_grad_(backward)
        for count in (queries, keys, keys)
    ]
    compiled_flex = torch.compile(flex_attention, dynamic=False)

    def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result: Tensor = compiled_flex(query[:, None], key[:, None], value[:, None], scale=1.0)
        return result[:, 0]

    functions = {"scaled_dot_product_attention": fused_attention, "FlexAttention": flex}
    functions["eager"] = partial(pooled_attention, backend="reference")
    functions["torch.compile"] = torch.compile(functions["eager"], dynamic=False)
    ours = "native" if device == "cpu" else "triton"
    gap = native_reason("pooled_attention", *leaves) if device == "cpu" else None
    calls: dict[str, Run | str] = {
        ours: gap or differentiated(lambda: pooled_attention(*leaves, backend=ours), leaves, backward)
    }
    for name, function in functions.items():
        calls[name] = differentiated(lambda function=function: function(*leaves), leaves, backward)  # type: ignore[misc]
    if device == "cuda" and width < 16:
        calls["FlexAttention"] = "on a GPU it takes widths from 16"
    if device == "cpu" and batch * queries * keys > LARGEST_MATRIX:
        gigabytes = batch * queries * keys * 4 / 2**30
        calls["eager"] = calls["torch.compile"] = f"its matrix of scores takes {gigabytes:.0f} GiB"
    return calls


BENCHMARK = Benchmark(
    title="Pooled attention, batch x (queries, keys, width): per image",
    cases=cases,
    rivals=rivals,
    truth=("eager", "scaled_dot_product_attention"),
    tolerance=lambda _, dtype, **__: 2e-5 if dtype == torch.float32 else 3e-2,
)
