"""Native operators called by several threads of Python at once: the same bits as one call after the other."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastinpaint as fi
from fastinpaint.ops import _backend


def _structure_loss(image, *predictions, backend):
    return fi.pyramid_structure_loss(image.detach(), predictions, backend=backend)


def _norm(x, weight, bias, backend):
    return fi.instance_norm(x, weight, bias, relu=True, padding=2, backend=backend)


def _cases():
    """(operator, inputs); the sizes differ, so that working memory grows and is used again."""
    for size in (37, 90, 64):
        image = torch.rand(2, 3, size, size)
        yield fi.canny, [image]
        yield fi.sobel_edges, [image]
        yield fi.edge_priority, [image[:, :1]]
        yield _structure_loss, [image, torch.randn(2, 6, size, size), torch.randn(2, 6, size // 2, size // 3)]
        yield fi.conv2d, [torch.randn(2, 16, size, size), torch.randn(48, 16, 3, 3) / 12, torch.randn(48)]
        yield _norm, [torch.randn(2, 4, size, size), torch.randn(4), torch.randn(4)]
        yield fi.pooled_attention, [torch.randn(2, count, 8) for count in (8 * size, size, size)]
        yield fi.patch_attention, [torch.randn(1, 4, size // 4, size // 2)]


def _result_and_gradients(case):
    operator, inputs = case
    inputs = [x.detach().requires_grad_() for x in inputs]
    result = operator(*inputs, backend="native")
    if result.requires_grad:
        result.square().sum().backward()
    return [result.detach(), *(x.grad for x in inputs if x.grad is not None)]


@pytest.mark.skipif(_backend.NATIVE_ERROR is not None, reason=str(_backend.NATIVE_ERROR))
def test_callers_do_not_disturb_each_other():
    cases = list(_cases())
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(4) as four:
        wanted = list(one.map(_result_and_gradients, cases))
        found = list(four.map(_result_and_gradients, 3 * cases))
    for a, b in zip(found, 3 * wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
