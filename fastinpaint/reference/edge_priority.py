"""Priority mask: the reference for ``ops/edge_priority.py``.

Sums of shifted views, not a convolution: weights made on the host would be a copy that waits for a GPU, and a GPU may
round the operands of a convolution to TensorFloat-32.
"""

import math

import torch.nn.functional as F
from torch import Tensor


def gaussian_weights(kernel_size: int, sigma: float) -> list[float]:
    """Sampled Gaussian of sum 1, as ``cv2.getGaussianKernel`` gives for sigma > 0."""
    middle = kernel_size // 2
    deviations = [(position - middle) / sigma for position in range(kernel_size)]
    weights = [math.exp(-0.5 * x * x) for x in deviations]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def edge_priority(edges: Tensor, *, kernel_size: int = 5, sigma: float = 1.0, iterations: int = 2) -> Tensor:
    """(B, 1, H, W) -> (B, 1, H, W): the edge map blurred ``iterations`` times; see ``ops.edge_priority``."""
    weights = gaussian_weights(kernel_size, sigma)
    radius = kernel_size // 2
    blurred = edges.clone()
    for _ in range(iterations):
        for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
            padded, size = F.pad(blurred, padding), blurred.shape[axis]
            blurred = weights[radius] * padded.narrow(axis, radius, size)
            for distance in range(1, radius + 1):
                pair = padded.narrow(axis, radius - distance, size) + padded.narrow(axis, radius + distance, size)
                blurred = blurred + weights[radius + distance] * pair
    return blurred
