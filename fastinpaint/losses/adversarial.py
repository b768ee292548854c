"""Adversarial losses of a patch discriminator; logits of any shape, scalars out, float32 or wider."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinpaint.ops._checks import at_least_float32


def hinge_generator(fake: Tensor) -> Tensor:
    """-mean(fake)."""
    return -at_least_float32(fake).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean(max(1 - real, 0)) + mean(max(1 + fake, 0))."""
    return F.relu(1 - at_least_float32(real)).mean() + F.relu(1 + at_least_float32(fake)).mean()


def cross_entropy_generator(fake: Tensor) -> Tensor:
    """-mean(log sigmoid(fake)), the non-saturating loss."""
    return F.softplus(-at_least_float32(fake)).mean()


def cross_entropy_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-mean(log sigmoid(real)) - mean(log(1 - sigmoid(fake)))."""
    return F.softplus(-at_least_float32(real)).mean() + F.softplus(at_least_float32(fake)).mean()


def gradient_penalty(
    discriminator: nn.Module, real: Tensor, fake: Tensor, mask: Tensor, between: Tensor | None = None
) -> Tensor:
    """Mean over the batch of (norm of the mask times the gradient of D - 1)^2 (Gulrajani et al. 2017, equation 3).

    The gradient of the summed logits is taken at one random point on the line between each real and fake image and
    counted inside the hole only.

    Args:
        discriminator: (B, 3, H, W) -> logits.
        real: (B, 3, H, W) in [-1, 1].
        fake: (B, 3, H, W) in [-1, 1], detached here.
        mask: (B, 1, H, W) or (1, 1, H, W), 1 = hole.
        between: Places on the lines, (B, 1, 1, 1), 0 = real, 1 = fake; None draws them.
    """
    if between is None:
        between = torch.rand(real.shape[0], 1, 1, 1, dtype=real.dtype, device=real.device)
    point = torch.lerp(real, fake.detach(), between).detach().requires_grad_()
    logits = discriminator(point)
    (slope,) = torch.autograd.grad(at_least_float32(logits).sum(), point, create_graph=True)
    squared_norm = (at_least_float32(slope) * mask).square().flatten(1).sum(1)  # (B,)
    return ((squared_norm + 1e-12).sqrt() - 1).square().mean()  # the constant keeps the root's slope finite at 0


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within the block, record no gradient for the parameters of ``module``; inputs still get theirs."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
