"""Loss terms of a batch that is computed in parts: on several processes, or in micro-batches one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class BatchPart:
    """What the loss terms of a part must know of the whole batch, so that the terms of all parts sum to the whole's.

    A term that is a mean over samples is scaled by ``fraction``. A quotient of sums is scaled by the part's
    denominator over the whole batch's, because sum(N_p) / sum(D_p) = sum over p of (N_p / D_p) * (D_p / sum(D_p)).
    Denominators depend on masks and edge maps alone, so these factors are constants and gradients sum as the terms do.

    Attributes:
        fraction: Samples of the part over samples of the whole batch.
        shares: Factors of the quotients, scalars by the name of the term.
        edges: The part's edge maps, ordered as the generator's output; None: they are computed when needed.
        sum_ranks: Sums a tensor over the parts, differentiably; for statistics that depend on the prediction.
    """

    fraction: float
    shares: Mapping[str, Tensor]
    edges: Sequence[Tensor] | None = None
    sum_ranks: Callable[[Tensor], Tensor] = _same

    def scale(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn terms computed on the part alone into its contributions to the terms of the whole batch."""
        return {name: term * self.shares.get(name, self.fraction) for name, term in terms.items()}

    def mean(self, statistic: Tensor) -> Tensor:
        """Turn the part's mean over its samples into the whole batch's, differentiably."""
        return self.sum_ranks(statistic * self.fraction)


def shares_of_parts(
    sums: Sequence[Mapping[str, Tensor]], sum_ranks: Callable[[Tensor], Tensor]
) -> list[dict[str, Tensor]]:
    """Divide each part's denominators by those of the whole batch.

    Args:
        sums: Of each part that this process computes, the denominators, scalars by the name of the term.
        sum_ranks: Sums a tensor over the processes.

    Returns:
        The factors of each part, by the name of the term; 0 where the whole batch's denominator is 0.
    """
    table = torch.stack([torch.stack(list(part.values())) for part in sums])  # (parts, terms)
    whole = sum_ranks(table.sum(0))
    shares = table / torch.where(whole > 0, whole, 1.0)
    return [dict(zip(part, row.unbind(), strict=True)) for part, row in zip(sums, shares, strict=True)]
