"""Count what Triton would compile for calls of several batch and picture sizes, without compiling it.

``python -m tests.helpers.compilations`` prints, for each kernel, the number of compilations as JSON.
"""

import json
from collections import Counter

import torch
import triton
from triton.runtime import driver

from fastinpaint_kernels import edge_priority, sobel_edges, structure_loss
from tests.helpers.triton_aot import _StandIn

BATCHES = (1, 2, 3, 16)
SIDES = (256, 96, 80, 48)


def _run(batch: int, side: int) -> None:
    """All operators once; what Triton's kernels would write stays as it is."""
    image = torch.empty(batch, 3, side, side)
    predictions = [torch.empty(batch, 6, side // 2**n, side // 2**n) for n in range(3)]
    edges = [torch.empty(batch, 1, side // 2**n, side // 2**n, dtype=torch.bool) for n in range(3)]
    terms, *kept = structure_loss.structure_loss_forward(image, predictions, edges, 20.0, 0.1)
    structure_loss.structure_loss_backward(terms, *kept, predictions)
    sobel_edges.sobel_edges_backward(sobel_edges.sobel_edges_forward(image))
    edge_priority.edge_priority(edges[0], 5, 1.0, 2)


def count(batches: tuple[int, ...], sides: tuple[int, ...]) -> Counter[str]:
    """Compilations of each kernel."""
    compiled: dict[str, set[str]] = {}

    def pass_over(key: str, fn: object, **_: object) -> bool:
        compiled.setdefault(f"{fn.module.split('.')[-1]}{fn.name}", set()).add(key)
        return True

    driver.set_active(_StandIn(90))
    triton.knobs.runtime.jit_cache_hook = pass_over
    for batch in batches:
        for side in sides:
            _run(batch, side)
    return Counter({name: len(keys) for name, keys in compiled.items()})


if __name__ == "__main__":
    print(json.dumps({"batches": count(BATCHES, SIDES[:1]), "sides": count(BATCHES[:1], SIDES)}))
