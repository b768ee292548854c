"""Pooled attention against plain PyTorch, torch.compile and torch's fused attention, on the CPU.

``python -m benchmarks.bench_pooled_attention [case ...]`` prints a Markdown table. Output and gradients are compared
with the reference's first; then the rivals take turns in one process.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Report, extra_memory, run_as_program, time_in_turns
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.pooled_attention import pooled_attention
from fastinpaint.reference import pooled_attention as reference

CASES = {  # name: batch, queries, keys, width, of the generator's attentions on a 256 x 256 image
    "1 x (16384, 4096, 4)": (1, 16384, 4096, 4),
    "1 x (4096, 1024, 8)": (1, 4096, 1024, 8),
    "1 x (1024, 256, 16)": (1, 1024, 256, 16),
    "4 x (16384, 4096, 4)": (4, 16384, 4096, 4),
    "16 x (4096, 1024, 8)": (16, 4096, 1024, 8),
    "16 x (1024, 256, 16)": (16, 1024, 256, 16),
}
LARGEST_MATRIX = 2**28  # scores; what keeps them all is left out above
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Run = Callable[[], tuple[Tensor, ...]]


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``scaled_dot_product_attention`` with one head and no scale."""
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]


def native(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Ours."""
    return pooled_attention(query, key, value, backend="native")


def rivals(batch: int, queries: int, keys: int, width: int, backward: bool) -> dict[str, Run]:
    """Name to a call that returns the output, or the gradients of query, key and value."""
    torch.manual_seed(0)
    inputs = tuple(torch.randn(batch, count, width, requires_grad=backward) for count in (queries, keys, keys))
    grad = torch.randn(batch, queries, width)
    functions: dict[str, Attention] = {"scaled_dot_product_attention": fused_attention}
    if native_reason("pooled_attention", *inputs) is None:
        functions = {"native": native, **functions}
    if batch * queries * keys <= LARGEST_MATRIX:
        functions["reference"] = reference.pooled_attention
        functions["torch.compile"] = torch.compile(reference.pooled_attention, dynamic=False)

    def call(function: Attention) -> Run:
        if backward:
            return lambda: torch.autograd.grad(function(*inputs), inputs, grad)
        return lambda: (function(*inputs),)

    return {name: call(function) for name, function in functions.items()}


def check(calls: dict[str, Run], case: str) -> None:
    """Stop unless ours agrees with its rivals: an operator that fails has no speed."""
    for name in set(calls) - {"native"}:
        for found, wanted in zip(calls["native"](), calls[name](), strict=True):
            error = ((found - wanted).norm() / wanted.norm()).item()
            if not error < 2e-5:
                raise SystemExit(f"{case}: native and {name} differ by {error:.1e}")


def report(cases: list[str] | None = None) -> Report:
    """Time every case (or those named), forward and forward with backward."""
    result = Report("Pooled attention, batch x (queries, keys, width): per image", ours="native")
    for case in cases or CASES:
        for direction, backward in (("forward", False), ("forward + backward", True)):
            name = f"{case}, {direction}"
            calls = rivals(*CASES[case], backward=backward)
            result.ours = next(iter(calls))
            if result.ours == "native":
                check(calls, name)
            memory = ", ".join(f"{rival} {extra_memory(call):.1f}" for rival, call in calls.items())
            result.notes.append(f"- {name}: peak extra memory in MiB: {memory}.")
            result.rows[name] = time_in_turns(calls, budget=2.0)
            result.per[name] = CASES[case][0]
    return result


if __name__ == "__main__":
    run_as_program(report, CASES, __doc__)
