"""Patch attention against its convolution form, eager and compiled, and torch's fused attention."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run, differentiated
from fastinpaint.ops.patch_attention import patch_attention
from fastinpaint.reference.patch_attention import NORM_FLOOR, key_patches

KERNEL_SIZE, STRIDE, SCALE = 3, 2, 10.0  # the generator's
Attention = Callable[..., Tensor]


def cases(device: str) -> list[Case]:
    if device in ("cuda", "dry"):  # the largest first
        sides = (128, 64, 32) if device == "cuda" else (4,)
        batch, image = (4, 256) if device == "cuda" else (1, 8)
        rows = [(batch, image, side, backward) for side in sides for backward in (False, True)]
        rows = rows if device == "cuda" else rows[1:]
    else:
        rows = [(1, image, image // 2, backward) for backward in (False, True) for image in (64, 128, 256)]
        rows += [(1, 256, side, backward) for side in (32, 64) for backward in (False, True)]
    return [_case(*row, device) for row in rows]


def _case(batch: int, image: int, side: int, backward: bool, device: str) -> Case:
    """The generator attends at an eighth, a quarter and half of an image, with 256, 128 and 64 channels."""
    channels = 32 * image // side
    queries, keys = side**2, (side // STRIDE) ** 2
    # Products of pairs of pixels, 2.25 times fewer than those of patches; the backward has twice as many again.
    products = 2 * 2 * queries * keys * channels * KERNEL_SIZE**2 / 2.25
    passes = "forward + backward" if backward else "forward"
    return Case(
        f"{f'{batch} x ' if batch > 1 else ''}{side}² x {channels}, {passes}",
        {"batch": batch, "channels": channels, "side": side, "backward": backward},
        Work(
            bytes=batch * (4 if device == "cpu" else 2) * channels * side**2 * (4 if backward else 2),
            flops=batch * products * (3 if backward else 1),
            exponentials=batch * queries * keys * (2 if backward else 1),
            dtype="float32" if device == "cpu" else "bfloat16",
        ),
        items=batch,
        series=f"64 channels, {passes}" if side * 2 == image and batch == 1 else "",
        size=image,
    )


def unfolded(features: Tensor, attention: Attention) -> Tensor:
    """The same through fused attention over unfolded patches, folded back with their sides swapped."""
    height, width = features.shape[2:]
    query = F.unfold(features, KERNEL_SIZE, padding=KERNEL_SIZE // 2).transpose(1, 2)  # (B, N, C k k)
    patches = key_patches(features, KERNEL_SIZE, STRIDE)  # (B, M, C, k, k)
    norm = patches.square().sum((2, 3, 4), keepdim=True).clamp_min(NORM_FLOOR**2).sqrt()
    key, value = (patches / norm).flatten(2), patches.flip(3, 4).flatten(2)
    result = attention(query[:, None], key[:, None], value[:, None], scale=SCALE)[:, 0]
    return F.fold(result.transpose(1, 2), (height, width), KERNEL_SIZE, padding=KERNEL_SIZE // 2) / 4


def attend(features: Tensor, backend: str) -> Tensor:
    """Patch attention as the generator has it."""
    return patch_attention(features, kernel_size=KERNEL_SIZE, stride=STRIDE, softmax_scale=SCALE, backend=backend)


def competitors(device: str, batch: int, channels: int, side: int, backward: bool) -> Competitors:
    """Name to a call for the output and, with ``backward``, the gradient of the features."""
    features = torch.randn(batch, channels, side, side, device=device)
    if device == "cuda":
        features = (features / 8).bfloat16()  # scores that bfloat16 can tell apart
    features.requires_grad_(backward)
    ours = "native" if device == "cpu" else "triton"
    compiled = torch.compile(attend, dynamic=False)
    compiled_flex = torch.compile(flex_attention, dynamic=False)
    values = {
        ours: lambda: attend(features, ours),
        "convolutions": lambda: attend(features, "reference"),
        "torch.compile": lambda: compiled(features, "reference"),
        "scaled_dot_product_attention": lambda: unfolded(features, F.scaled_dot_product_attention),
        "FlexAttention": lambda: unfolded(features, compiled_flex),
    }
    calls: dict[str, Run | str] = {name: differentiated(value, [features], backward) for name, value in values.items()}
    if device == "cuda" and channels * KERNEL_SIZE**2 > 256:
        calls["FlexAttention"] = "on a GPU it takes widths up to 256"
    return calls


BENCHMARK = Benchmark(
    title=f"Patch attention, k = {KERNEL_SIZE}, stride {STRIDE}: per image",
    cases=cases,
    competitors=competitors,
    reference=("convolutions",),
    tolerance=lambda device, **__: 1e-4 if device == "cpu" else 3e-2,
    notes=(
        "Not run for images of 512² and 1024² on the CPU: the work grows 16 times with each doubling.",
        "The floor counts products of pairs of pixels, 2.25 times fewer than those of patches.",
    ),
)
