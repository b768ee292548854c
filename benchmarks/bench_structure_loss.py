"""Pyramid structure loss against eager PyTorch and torch.compile, on the CPU, edges given.

``python -m benchmarks.bench_structure_loss [case ...]`` prints a Markdown table. Loss and gradients of every rival are
compared with the eager ones first; then the rivals take turns in one process.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Report, extra_memory, run_as_program, time_in_turns
from fastinpaint.ops.structure_loss import pyramid_structure_loss

CASES = {  # batch, side of the largest of three scales in pixels, dtype of the predictions, whether with the backward
    "8 x 64²": (8, 64, torch.float32, True),
    "8 x 128²": (8, 128, torch.float32, True),
    "8 x 256², forward only": (8, 256, torch.float32, False),
    "8 x 256²": (8, 256, torch.float32, True),
    "8 x 256², bfloat16": (8, 256, torch.bfloat16, True),
    "1 x 256²": (1, 256, torch.float32, True),
    "1 x 1024²": (1, 1024, torch.float32, True),
}
TOLERANCE = 1e-3  # relative L2; the sign of an error that is nearly 0 may flip with rounding
Run = Callable[[], tuple[Tensor, ...]]  # the loss and, with the backward, the gradients
Inputs = tuple[Tensor, list[Tensor], list[Tensor]]


def inputs(batch: int, size: int, dtype: torch.dtype) -> Inputs:
    """Image in [-1, 1], predictions that need gradients, edge maps with a tenth of the pixels set."""
    torch.manual_seed(0)
    image = torch.rand(batch, 3, size, size) * 2 - 1
    sides = (size, size // 2, size // 4)
    predictions = [torch.randn(batch, 6, side, side).to(dtype).requires_grad_() for side in sides]
    return image, predictions, [(torch.rand(batch, 1, side, side) < 0.1).float() for side in sides]


def rivals(tensors: Inputs, *, backward: bool) -> dict[str, Run]:
    """Name -> what is timed."""
    image, predictions, edges = tensors

    def loss(backend: str) -> Callable[[], Tensor]:
        return lambda: pyramid_structure_loss(image, predictions, edges=edges, backend=backend)

    def timed(value_of: Callable[[], Tensor]) -> Run:
        def run() -> tuple[Tensor, ...]:
            value = value_of()
            return (value, *torch.autograd.grad(value, predictions)) if backward else (value,)

        return run

    compiled = torch.compile(loss("reference"), dynamic=False)
    return {"native": timed(loss("native")), "eager": timed(loss("reference")), "torch.compile": timed(compiled)}


def check(runs: dict[str, Run], case: str) -> None:
    """Stop unless all agree: an operator that fails has no speed."""
    wanted = runs["eager"]()
    for name, run in runs.items():
        for found, expected in zip(run(), wanted, strict=True):
            error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
            if not error < TOLERANCE:
                raise SystemExit(f"{case}: {name} differs from eager by {error:.1e}")


def least_bytes(tensors: Inputs, *, backward: bool) -> int:
    """What any implementation must move: every input read once, every gradient written once."""
    image, predictions, edges = tensors
    size_of = [sum(t.numel() * t.element_size() for t in group) for group in ([image], predictions, edges)]
    return sum(size_of) + backward * size_of[1]


def report(cases: list[str] | None = None) -> Report:
    """Time every case (or those named)."""
    result = Report("Pyramid structure loss, forward and backward: per image", ours="native")
    for case in cases or CASES:
        batch, size, dtype, backward = CASES[case]
        tensors = inputs(batch, size, dtype)
        runs = rivals(tensors, backward=backward)
        check(runs, case)
        memory = ", ".join(f"{name} {extra_memory(run):.0f}" for name, run in runs.items())
        moved = least_bytes(tensors, backward=backward) / batch / 1e6
        result.notes.append(f"{case}: {moved:.2f} MB to move for each image; extra memory in MiB: {memory}.")
        result.rows[case] = time_in_turns(runs, rounds=15, budget=5.0)
        result.per[case] = batch
        torch.compiler.reset()
    return result


if __name__ == "__main__":
    run_as_program(report, CASES, __doc__)
