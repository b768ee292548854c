"""Momentum with orthogonalised updates, for convolution kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # drives singular values from (0, 1] to about 1 in five rounds
_ROUNDS = 5
_TINY = 1e-3


class Muon(torch.optim.Optimizer):
    """Step along the gradient made orthogonal, so that a kernel changes equally along all its singular vectors.

    A kernel (out, in, k, k) is seen as a matrix (out, in * k * k). Its averaged gradient is replaced by the nearest
    orthogonal matrix (Newton-Schulz iteration) and scaled to ``lr`` times the kernel's own norm, which suits kernels in
    front of a norm: only their direction counts. On small budgets it needs about half of Adam's updates.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scale is ours.

    Args:
        parameters: Tensors of two or more dimensions.
        lr: Length of a step relative to the norm of the kernel.
        momentum: Decay of the averaged gradient.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                direction = orthogonalise(parameter.grad.lerp(mean, group["momentum"]))
                scale = parameter.norm() / direction.norm().clamp_min(_TINY)
                parameter.sub_(direction * (group["lr"] * scale))


def orthogonalise(kernel: Tensor) -> Tensor:
    """(out, ...) -> same: all singular values of the matrix (out, rest) brought near 1; zero stays zero."""
    matrix = kernel.flatten(1).float()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    wide = wide / wide.norm().clamp_min(1e-12)
    a, b, c = _POLYNOMIAL
    for _ in range(_ROUNDS):
        gram = wide @ wide.t()
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    result = wide if matrix.shape[0] <= matrix.shape[1] else wide.t()
    return result.reshape(kernel.shape).to(kernel.dtype)
