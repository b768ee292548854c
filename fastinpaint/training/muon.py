"""Momentum with orthogonalised updates, for convolution weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # drives singular values from (0, 1] to about 1 in five rounds
_ROUNDS = 5
_TINY = 1e-3


class Muon(torch.optim.Optimizer):
    """Step along the gradient made orthogonal, so that a weight changes equally along all its singular vectors.

    A weight (out, in, k, k) is seen as a matrix (out, in * k * k). Its averaged gradient is replaced by the nearest
    orthogonal matrix (Newton-Schulz iteration, all weights of one shape in one batch) and scaled to ``lr`` times the
    weight's own norm; then the weight gets its norm back. That suits weights in front of a norm, of which only the
    direction counts; without it their norms grow a thousandfold in a few thousand steps. On small budgets it needs
    about half of Adam's updates. A step never waits for the device, so that it can be part of a CUDA graph; as with
    torch's fused optimizers, an attribute ``found_inf`` that is a tensor above 0 makes it leave everything as it is.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scale is ours.

    Args:
        parameters: Tensors of two or more dimensions.
        lr: Length of a step relative to the norm of the weight; a tensor may be changed between replays of a graph.
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
            for weights in shapes.values():
                self._step_alike(weights, group["lr"], group["momentum"])

    def _step_alike(self, weights: list[Tensor], lr: float | Tensor, momentum: float) -> None:
        """Update weights whose matrices have one shape."""
        means = [self.state[weight].setdefault("mean", torch.zeros_like(weight)) for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        gradient, mean, matrix = (_stacked(tensors) for tensors in (gradients, means, weights))
        mean = mean.lerp(gradient, 1 - momentum)
        direction = orthogonalise(gradient.lerp(mean, momentum))
        scale = lr * _norms(matrix) / _norms(direction).clamp_min(_TINY)  # (N, 1, 1)
        moved = matrix - direction * scale
        moved = moved * (_norms(matrix) / _norms(moved).clamp_min(1e-12))
        if self.found_inf is not None:
            skip = self.found_inf > 0
            moved = torch.where(skip, matrix, moved)
            mean = torch.where(skip, _stacked(means), mean)
        torch._foreach_copy_(weights, [new.view(weight.shape) for new, weight in zip(moved, weights, strict=True)])
        torch._foreach_copy_(means, [new.view(weight.shape) for new, weight in zip(mean, weights, strict=True)])


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Tensors of N weights -> (N, out, in * k * k)."""
    return torch.stack([tensor.flatten(1) for tensor in tensors])


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


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()
