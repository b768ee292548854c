import sys
from types import SimpleNamespace

import pytest
import torch

import fastinpaint.ops.structure_loss  # noqa: F401 - registers
from fastinpaint.reference import structure_loss as reference
from fastinpaint_kernels import structure_loss as kernels
from tests.golden_data import relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# float32 sums in another order than the reference in float64; half-precision gradients are rounded once, and the
# interpreter rounds to bfloat16 by truncation.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}
ODD_SIZES = [(9, 9), (7, 13), (2, 3)]  # more than one strip, less than one, the least


@pytest.fixture(autouse=True)
def _short_strips(monkeypatch):
    """Four rows a strip, for the interpreter takes its time for each; more of them in a map."""
    monkeypatch.setattr(kernels, "ROWS", 4)


def _case(batch, image_size, sizes, dtype=torch.float32):
    image = torch.rand(batch, 3, *image_size) * 2 - 1
    predictions = [torch.randn(batch, 6, h, w).to(dtype) for h, w in sizes]
    edges = [torch.rand(batch, 1, h, w) < 0.1 for h, w in sizes]
    return image, predictions, edges


def _expected(image, predictions, edges, weights, **alphas):
    leaves = [p.double().requires_grad_() for p in predictions]
    terms = reference.structure_loss_terms(image.double(), leaves, edges=edges, **alphas)
    return terms.detach(), torch.autograd.grad(terms, leaves, weights.double())


def _found(image, predictions, edges, weights, *, edge_alpha=20.0, grad_alpha=0.1):
    terms, *kept = kernels.structure_loss_forward(image, predictions, edges, edge_alpha, grad_alpha)
    return terms, kernels.structure_loss_backward(weights, *kept, predictions)


def _check(image, predictions, edges, **alphas):
    weights = 1e3 * torch.rand(2, len(predictions)).T  # keeps float16 gradients normal
    terms, grads = _found(image, predictions, edges, weights, **alphas)
    expected_terms, expected_grads = _expected(image, predictions, edges, weights, **alphas)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=1e-5, atol=1e-6)
    for prediction, grad, expected in zip(predictions, grads, expected_grads, strict=True):
        assert grad.dtype == prediction.dtype
        assert relative_error(grad.double(), expected) <= TOLERANCE[prediction.dtype]


def test_equals_the_reference_at_odd_sizes():
    _check(*_case(2, (23, 17), ODD_SIZES))


def test_equals_the_reference_where_scales_are_whole_strips(monkeypatch):
    monkeypatch.undo()  # strips of 16 rows, as they are on a GPU
    _check(*_case(1, (32, 70), [(32, 70), (16, 35), (16, 10)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions(dtype):
    _check(*_case(1, (8, 8), [(7, 13), (4, 4)], dtype))


def test_layouts_of_memory_do_not_matter():
    image, predictions, edges = _case(1, (9, 12), [(9, 12), (5, 6)])
    weights = torch.rand(2, 2)
    expected = _found(image, predictions, edges, weights)
    last = torch.channels_last
    wide = torch.zeros(1, 1, 9, 24, dtype=torch.bool)[..., ::2].copy_(edges[0])
    moved = [p.to(memory_format=last) for p in predictions]
    terms, grads = _found(image.to(memory_format=last), moved, [wide, edges[1]], weights)
    assert torch.equal(terms, expected[0])
    for grad, wanted in zip(grads, expected[1], strict=True):
        assert grad.is_contiguous(memory_format=last)
        assert torch.equal(grad, wanted)


def test_edges_may_be_soft_and_few():
    image, predictions, _ = _case(1, (8, 66), [(3, 66), (4, 4)])
    _check(image, predictions, [torch.rand(1, 1, 3, 66), torch.zeros(1, 1, 4, 4)])
    image, predictions, _ = _case(1, (8, 8), [(8, 8), (4, 4)])
    _check(image, predictions, [torch.rand(1, 1, 8, 8).half(), torch.ones(1, 1, 4, 4).bfloat16()], edge_alpha=0.0)


def test_signs_and_priorities_are_kept_for_gradients_only():
    image, predictions, edges = _case(1, (4, 4), [(4, 4)])
    terms, _, priorities, signs = kernels.structure_loss_forward(image, predictions, edges, 20.0, 0.1, keep=False)
    assert torch.equal(terms, kernels.structure_loss_forward(image, predictions, edges, 20.0, 0.1)[0])
    assert priorities.numel() == signs.numel() == 0


def test_the_kernel_leaves_its_counts_zero(monkeypatch):
    case = _case(1, (6, 12), [(6, 12), (3, 6)])
    counts = torch.zeros(kernels.MAX_SCALES, dtype=torch.int32)
    monkeypatch.setattr(kernels, "_zeroed_counts", lambda image: counts)
    first, second = (kernels.structure_loss_forward(*case, 20.0, 0.1, keep=False)[0] for _ in range(2))
    assert not counts.any()
    assert torch.equal(first, second)


def test_calls_that_may_run_at_once_share_no_counts(monkeypatch):
    image = SimpleNamespace(is_cuda=True, device="cuda:0", get_device=lambda: 0, new_zeros=torch.zeros)
    monkeypatch.setattr(kernels, "_counts", {})
    monkeypatch.setattr(kernels, "_counts_for_graphs", {})
    monkeypatch.delitem(sys.modules, "torch._inductor.cudagraph_trees", raising=False)

    def counts(stream, capturing=False):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=stream))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        found = kernels._zeroed_counts(image)
        assert found.shape == (kernels.MAX_SCALES,)
        assert not found.any()
        return found.data_ptr()

    kept = [counts(0, capturing=True), counts(0), counts(7), *(counts(7, capturing=True) for _ in range(40))]
    assert counts(0) == kept[1]
    assert counts(7) == kept[2]
    assert len(set(kept[1:34])) == 33
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", None)
    assert counts(8) not in kept[1:34]
    assert (0, 8) not in kernels._counts


def test_empty_batch():
    terms, grads = _found(*_case(0, (8, 8), [(8, 8)]), torch.ones(1, 2))
    assert torch.equal(terms, torch.zeros(1, 2))
    assert grads[0].shape == (0, 6, 8, 8)


def test_registration():
    image, predictions, edges = _case(1, (4, 4), [(4, 4), (2, 3)])
    predictions = [p.requires_grad_() for p in predictions]
    arguments = (image, predictions, edges, 20.0, 0.1, True)
    torch.library.opcheck(torch.ops.fastinpaint_triton.structure_loss.default, arguments)
    plain = [p.detach() for p in predictions]
    saved = kernels.structure_loss_forward(image, plain, *arguments[2:])
    run = torch.ops.fastinpaint_triton.structure_loss_backward.default
    torch.library.opcheck(run, (torch.ones(2, 2), *saved[1:], plain))
    tensors = [*plain, *run(torch.ones(2, 2), *saved[1:], plain)]  # opcheck does not look for aliases in lists
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
