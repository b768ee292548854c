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
    orthogonal matrix (Newton-Schulz iteration, all kernels of one shape in one batch) and scaled to ``lr`` times the
    kernel's own norm; then the kernel gets its norm back. That suits kernels in front of a norm, of which only the
    direction counts; without it their norms grow a thousandfold in a few thousand steps. On small budgets it needs
    about half of Adam's updates. A step never waits for the device, so that it can be part of a CUDA graph; as with
    torch's fused optimizers, an attribute ``found_inf`` that is a tensor above 0 makes it leave everything as it is.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scale is ours.

    Args:
        parameters: Tensors of two or more dimensions.
        lr: Length of a step relative to the norm of the kernel; a tensor may be changed between replays of a graph.
        momentum: Decay of the averaged gradient.
    """

    found_inf: Tensor | None = None

    def __init__(self, parameters: Iterable[Tensor], lr: float | Tensor, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not used."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(_matrix_shape(parameter), []).append(parameter)
            for kernels in shapes.values():
                self._step_alike(kernels, group["lr"], group["momentum"])

    def _step_alike(self, kernels: list[Tensor], lr: float | Tensor, momentum: float) -> None:
        """Update kernels whose matrices have one shape."""
        means = [self.state[kernel].setdefault("mean", torch.zeros_like(kernel)) for kernel in kernels]
        gradient, mean, weight = (
            torch.stack([tensor.flatten(1) for tensor in tensors])  # (N, out, in * k * k)
            for tensors in ([kernel.grad for kernel in kernels if kernel.grad is not None], means, kernels)
        )
        mean = mean.lerp(gradient, 1 - momentum)
        direction = orthogonalise(gradient.lerp(mean, momentum))
        scale = lr * _norms(weight) / _norms(direction).clamp_min(_TINY)  # (N, 1, 1)
        moved = weight - direction * scale
        weight = moved * (_norms(weight) / _norms(moved).clamp_min(1e-12))
        if self.found_inf is not None:
            skip = self.found_inf > 0
            weight = torch.where(skip, torch.stack([kernel.flatten(1) for kernel in kernels]), weight)
            mean = torch.where(skip, torch.stack([kept.flatten(1) for kept in means]), mean)
        torch._foreach_copy_(kernels, [new.view(kernel.shape) for new, kernel in zip(weight, kernels, strict=True)])
        torch._foreach_copy_(means, [new.view(kernel.shape) for new, kernel in zip(mean, kernels, strict=True)])


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> same: all singular values of each matrix brought near 1; a zero matrix stays zero.

    On CUDA the products take bfloat16, as is usual for this iteration; elsewhere float32.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.transpose(1, 2) if tall else matrices
    wide = wide / _norms(wide).clamp_min(1e-12)
    wide = wide.to(torch.bfloat16) if wide.is_cuda else wide
    a, b, c = _POLYNOMIAL
    for _ in range(_ROUNDS):
        gram = wide @ wide.transpose(1, 2)
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.transpose(1, 2) if tall else wide).to(matrices.dtype)


def _norms(matrices: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)  # (N, 1, 1)


def _matrix_shape(kernel: Tensor) -> tuple[int, int]:
    return kernel.shape[0], kernel[0].numel()
