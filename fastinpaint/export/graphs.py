"""The generator as one graph with symbolic batch, height and width: no kernels, no loops over samples."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import CANNY_SIGMA
from fastinpaint.models.layers import PatchAttention, PooledAttention, reflect, with_interior
from fastinpaint.reference import canny
from fastinpaint.reference.patch_attention import NORM_FLOOR
from fastinpaint.reference.pooled_attention import pooled_attention
from fastinpaint.reference.sobel_edges import sobel_edges

LOW_THRESHOLD, HIGH_THRESHOLD = 0.1, 0.2  # of Canny, as fastinpaint.canny has them by default
SCALE = 10.0  # of patch attention's softmax, as fastinpaint.patch_attention has it by default


class NetworkGraph(nn.Module):
    """(B, 11, H, W) as ``assemble_input`` makes it -> images at full, half and quarter size, then gradients."""

    def __init__(self, generator: InpaintGenerator) -> None:
        super().__init__()
        self.generator = graph_friendly(generator)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return three images (B, 3, h, w) in [-1, 1] and three gradient maps (B, 6, h, w)."""
        output = self.generator(inputs)
        return (*output.images, *output.gradients)


class PictureGraph(nn.Module):
    """A picture and its hole -> the filled picture, from the known pixels alone.

    The edges are exact: hysteresis repeats until nothing changes, which is a loop in the graph.
    """

    def __init__(self, generator: InpaintGenerator) -> None:
        super().__init__()
        self.generator = graph_friendly(generator)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Fill the hole.

        Args:
            image: (B, 3, H, W) float32 in [0, 1]; H and W divisible by 16; any value in the hole.
            mask: (B, 1, H, W) float32, above 0.5 in the hole.

        Returns:
            (B, 3, H, W) in [0, 1], equal to ``image`` outside the hole.
        """
        known = mask < 0.5  # (B, 1, H, W)
        visible = torch.where(known, image * 2 - 1, 0.0)
        edges = masked_canny((visible + 1) / 2, known)
        share = known.to(image.dtype)
        weight = F.avg_pool2d(share, 3, stride=1, padding=1)
        mean = F.avg_pool2d(visible, 3, stride=1, padding=1) / weight.clamp_min(1e-6)
        gradients = sobel_edges(torch.where(known, visible, mean)) * share
        shown = (1 - edges.to(image.dtype)) * share + (1 - share)
        result = self.generator(torch.cat([visible, shown, 1 - share, gradients], 1)).images[0]
        return torch.where(known, image, (result.clamp(-1, 1) + 1) / 2)


class PooledAttentionGraph(nn.Module):
    """``PooledAttention`` by matrix products and a softmax."""

    def __init__(self, layer: PooledAttention) -> None:
        super().__init__()
        self.layer, self.padding = layer, layer.padding

    def forward(self, x: Tensor, *, padded: bool = False, padding: int = 0) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); ``padded`` and ``padding`` as in ``ConvNorm``."""
        x, residual = with_interior(x, self.padding) if padded else (x, x)
        attended = pooled_attention(*self.layer.operands(x, padded=padded)).transpose(1, 2)  # (B, d, H W / 4)
        height, width = residual.shape[-2] // 2, residual.shape[-1] // 2
        attended = attended.reshape(x.shape[0], -1, height, width)
        return self.layer.up(attended, padding=padding, residual=residual, scale=self.layer.gamma)


class PatchAttentionGraph(nn.Module):
    """``PatchAttention`` over the whole batch at once; patches are cut and laid by convolutions."""

    def __init__(self, layer: PatchAttention) -> None:
        super().__init__()
        self.layer, self.padding = layer, layer.padding

    def forward(self, x: Tensor, *, padded: bool = False, padding: int = 0) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); ``padded`` and ``padding`` as in ``ConvNorm``."""
        layer = self.layer
        x, residual = with_interior(x, self.padding) if padded else (x, x)
        y = x if layer.down is None else layer.down(x, padded=padded)
        y = patch_attention(y, layer.kernel_size, layer.stride)
        x = residual + layer.gamma * y if layer.up is None else layer.up(y, residual=residual, scale=layer.gamma)
        return reflect(F.relu(layer.out(x)), padding)


def graph_friendly(generator: InpaintGenerator) -> InpaintGenerator:
    """Return a copy on the CPU, in float32 and evaluation mode, whose attentions are graphs of plain operators."""
    copied = copy.deepcopy(generator).cpu().float().eval().requires_grad_(False)
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, PooledAttention):
                setattr(module, name, PooledAttentionGraph(child))
            elif isinstance(child, PatchAttention):
                setattr(module, name, PatchAttentionGraph(child))
    return copied


def patch_attention(features: Tensor, kernel_size: int, stride: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W): ``reference.patch_attention`` with the "correlation" aggregation.

    H and W must be divisible by the stride.
    """
    channels, k, centre = features.shape[1], kernel_size, kernel_size // 2
    spill = max(k - stride, 0)  # TensorFlow's SAME padding, of which the larger half goes to the end
    padded = F.pad(features, (spill // 2, spill - spill // 2) * 2)
    # One-hot filters cut and lay patches: slices would make the graph ten times larger and slow to trace.
    one_hot = torch.eye(k * k, dtype=features.dtype).reshape(k * k, k, k)
    cut = one_hot[:, None].repeat(channels, 1, 1, 1)  # (C k k, 1, k, k)
    around = F.conv2d(features, cut, padding=centre, groups=channels)  # (B, C k k, H, W)
    keys = F.conv2d(padded, cut, stride=stride, groups=channels).flatten(2)  # (B, C k k, M)
    norm = keys.square().sum(1, keepdim=True).clamp_min(NORM_FLOOR**2).sqrt()
    scores = around.flatten(2).transpose(1, 2) @ (keys / norm)  # (B, H W, M)
    laid = keys @ torch.softmax(SCALE * scores, -1).transpose(1, 2)  # (B, C k k, H W)
    lay = one_hot[None].repeat(channels, 1, 1, 1)  # (C, k k, k, k)
    return F.conv2d(laid.reshape(around.shape), lay, padding=centre, groups=channels) / 4


def masked_canny(image: Tensor, valid: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], (B, 1, H, W) bool -> (B, 1, H, W) bool: ``fastinpaint.canny`` with its defaults."""
    gray = canny.rgb_to_gray(image)
    weights = canny.gaussian_weights(CANNY_SIGMA)
    # Both in one call: half of the nodes to trace and to convert.
    blurred, share = canny.gaussian(torch.cat([torch.where(valid, gray, 0.0), valid.float()], 1), weights).split(1, 1)
    smooth = blurred / (share + torch.finfo(gray.dtype).eps)
    magnitude, keep = canny.thin(*canny.sobel(smooth))
    weak = keep & canny.erode(valid) & (magnitude >= LOW_THRESHOLD)
    return hysteresis(weak, weak & (magnitude >= HIGH_THRESHOLD))


def hysteresis(weak: Tensor, strong: Tensor) -> Tensor:
    """Grow ``strong`` through ``weak`` over 8-connected pixels until nothing changes. (B, 1, H, W) bool."""
    allowed = weak.float()

    def growing(edges: Tensor, changed: Tensor) -> Tensor:
        return changed > 0

    def grow(edges: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
        grown = F.max_pool2d(edges, 3, stride=1, padding=1) * allowed
        return grown, (grown - edges).max()

    state = (strong.float(), strong.float().max())
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.while_loop import while_loop

        state = while_loop(growing, grow, state)
    else:
        while growing(*state):
            state = grow(*state)
    return state[0] > 0.5
