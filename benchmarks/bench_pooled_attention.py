"""Pooled attention against eager PyTorch, torch.compile, torch's fused attention and FlexAttention."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run, differentiated
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.pooled_attention import pooled_attention

LARGEST_MATRIX = 2**28  # scores, 1 GiB; what keeps them all is left out above
SDPA_WIDTH = 8  # fused kernels on a GPU take multiples of it
SDPA = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def cases(device: str) -> list[Case]:
    float32, bfloat16 = torch.float32, torch.bfloat16
    if device in ("cuda", "dry"):
        kinds = ((bfloat16, False), (bfloat16, True), (float32, True))
        if device == "cuda":  # the largest map has 94 % of the scores, so it comes first
            rows = [(16, 256, width, dtype, backward) for width in (4, 8, 16) for dtype, backward in kinds]
            rows += [(16, 256, 4, float32, False), (1, 256, 4, bfloat16, False)]
        else:
            rows = [(1, 8, 4, dtype, True) for dtype in (bfloat16, float32)]
    else:
        widest = [(1, side, 4, float32, backward) for backward in (False, True) for side in (64, 128, 256, 512)]
        rows = [*widest, (1, 1024, 4, float32, False)]
        rows += [(1, 256, width, float32, backward) for width in (8, 16) for backward in (False, True)]
        rows += [(4, 256, 4, float32, False), (16, 256, 8, float32, True), (16, 256, 16, float32, True)]
    listed = [_case(*row, device) for row in rows]
    if device == "cpu":  # not the generator's: as wide as the kernel takes, where the products decide
        listed += [_case(1, 256, 64, float32, backward, device, shape=(1024, 1024)) for backward in (False, True)]
    return listed


def _case(
    batch: int,
    side: int,
    width: int,
    dtype: torch.dtype,
    backward: bool,
    device: str,
    shape: tuple[int, int] | None = None,
) -> Case:
    """Of width 4, 8 or 16 is the generator's attention at full, half and quarter size of an image."""
    queries, keys = shape or ((side * 2 // width) ** 2, (side // width) ** 2)
    scores = batch * queries * keys
    passed = batch * (2 * queries + 2 * keys) * width * dtype.itemsize
    flops = (14 if backward else 4) * scores * width  # two products; scores again and four more
    split = dtype == torch.float32 and device != "cpu"  # into three products of TensorFloat-32
    return Case(
        f"{batch} x ({queries}, {keys}, {width}){'' if dtype == torch.float32 else ', bfloat16'}, "
        f"{'forward + backward' if backward else 'forward'}",
        {"batch": batch, "queries": queries, "keys": keys, "width": width, "dtype": dtype, "backward": backward},
        Work(
            bytes=(3 if backward else 1) * passed,
            flops=flops * (3 if split else 1),
            exponentials=(1 + backward) * scores,
            dtype="tf32" if split else str(dtype).removeprefix("torch."),
        ),
        items=batch,
        series=f"width 4, {'forward + backward' if backward else 'forward'}" if (batch, width) == (1, 4) else "",
        size=side,
    )


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``scaled_dot_product_attention`` with one head and no scale."""
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]


def padded_attention(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by one backend; heads are widened by zeros to a multiple of 8, which changes no result."""
    width = value.shape[2]
    pad = -width % SDPA_WIDTH
    if pad:
        query, key, value = (F.pad(tensor, (0, pad)) for tensor in (query, key, value))
    with sdpa_kernel(backend):
        return fused_attention(query, key, value)[..., :width]


def competitors(
    device: str, batch: int, queries: int, keys: int, width: int, dtype: torch.dtype, backward: bool
) -> Competitors:
    """Name to a call for the output, or for it and the gradients of query, key and value."""
    leaves = [
        torch.randn(batch, count, width, device=device).to(dtype).requires_grad_(backward)
        for count in (queries, keys, keys)
    ]
    compiled_flex = torch.compile(flex_attention, dynamic=False)

    def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result: Tensor = compiled_flex(query[:, None], key[:, None], value[:, None], scale=1.0)
        return result[:, 0]

    ours = "native" if device == "cpu" else "triton"
    eager = partial(pooled_attention, backend="reference")
    functions: dict[str, Callable[..., Tensor]] = {ours: partial(pooled_attention, backend=ours)}
    if device == "cpu":
        functions["scaled_dot_product_attention"] = fused_attention
    else:
        functions |= {name: partial(padded_attention, backend) for name, backend in SDPA.items()}
    functions |= {"eager": eager, "torch.compile": torch.compile(eager, dynamic=False), "FlexAttention": flex}
    calls: dict[str, Run | str] = {
        name: differentiated(lambda function=function: function(*leaves), leaves, backward)  # type: ignore[misc]
        for name, function in functions.items()
    }
    gap = native_reason("pooled_attention", *leaves) if device == "cpu" else None
    if gap is not None:
        calls[ours] = gap
    if device == "cuda" and width < 16:
        calls["FlexAttention"] = "on a GPU it takes widths from 16"
    if device == "cpu" and batch * queries * keys > LARGEST_MATRIX:
        gigabytes = batch * queries * keys * 4 / 2**30
        calls["eager"] = calls["torch.compile"] = f"its matrix of scores takes {gigabytes:.0f} GiB"
    return calls


BENCHMARK = Benchmark(
    title="Pooled attention, batch x (queries, keys, width): per image",
    cases=cases,
    competitors=competitors,
    reference=("eager", "scaled_dot_product_attention"),
    # On a GPU ours takes three TensorFloat-32 products for one of float32.
    tolerance=lambda device, dtype, **_: 3e-2 if dtype != torch.float32 else 2e-5 if device == "cpu" else 1e-4,
    notes=(
        "On a GPU SDPA is given heads padded by zeros to a multiple of 8, which its kernels want; the padding counts.",
    ),
)
