import pytest
import torch

import fastinpaint.ops.patch_attention  # noqa: F401 - registers
from fastinpaint.reference import patch_attention as reference
from fastinpaint_kernels import patch_attention as kernels
from tests.golden_data import relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Attention weights and their gradients are operands of products in the features' dtype; the interpreter rounds to
# bfloat16 by truncation.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 3e-3}


def _expected(features, grad_output, options, overlap_add):
    wide = features.double().requires_grad_()
    aggregation = "overlap_add" if overlap_add else "correlation"
    output = reference.patch_attention(wide, **options, aggregation=aggregation)
    return output.detach(), torch.autograd.grad(output, wide, grad_output.double())[0]


def _found(features, grad_output, options, overlap_add):
    arguments = (options["kernel_size"], options["stride"], options["softmax_scale"], overlap_add)
    output, lse = kernels.patch_attention_forward(features, *arguments)
    return output, kernels.patch_attention_backward(grad_output, features, lse, *arguments)


def _check(features, kernel_size=3, stride=2, softmax_scale=10.0, overlap_add=False):
    options = {"kernel_size": kernel_size, "stride": stride, "softmax_scale": softmax_scale}
    grad_output = torch.randn(features.shape).to(features.dtype)
    found = _found(features, grad_output, options, overlap_add)
    for result, wanted in zip(found, _expected(features, grad_output, options, overlap_add), strict=True):
        assert result.dtype == features.dtype
        assert relative_error(result.double(), wanted) <= TOLERANCE[features.dtype]
    return found


@pytest.mark.parametrize(
    ("kernel_size", "stride", "overlap_add"),
    [
        (1, 1, False),
        (1, 2, True),
        (3, 1, True),
        (3, 2, False),
        (3, 2, True),
        (5, 1, False),
        (5, 2, True),
        (5, 3, False),
    ],
)
def test_equals_the_reference(kernel_size, stride, overlap_add):
    _check(torch.randn(1, 3, 4, 6) / 3, kernel_size, stride, overlap_add=overlap_add)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    _check((torch.randn(1, 8, 6, 7) / 4).to(dtype))


def test_many_channels_and_keys():
    _check(torch.randn(2, 70, 3, 4) / 20)


def test_chunks_do_not_matter(monkeypatch):
    features = torch.randn(2, 2, 5, 5)
    torch.manual_seed(1)
    whole = _check(features)
    monkeypatch.setattr(kernels, "CHUNK", 4 * 9 * 20)  # one image, 20 queries at a time
    torch.manual_seed(1)
    for found, wanted in zip(_check(features), whole, strict=True):
        torch.testing.assert_close(found, wanted)


def test_rows_of_scores_that_no_block_holds(monkeypatch):
    features = torch.randn(1, 2, 5, 7) / 3
    torch.manual_seed(1)
    whole = _check(features)
    monkeypatch.setattr(kernels, "WHOLE_ROW", 32)
    torch.manual_seed(1)
    for found, wanted in zip(_check(features), whole, strict=True):
        torch.testing.assert_close(found, wanted)


def test_patches_below_the_norm_floor():
    features = torch.randn(1, 2, 7, 8)
    features[..., :5] *= 1e-6
    _check(features, softmax_scale=3.0)


def test_memory_layout_is_kept_and_does_not_matter():
    features = torch.randn(1, 4, 5, 6)
    last = features.to(memory_format=torch.channels_last)
    options = {"kernel_size": 3, "stride": 2, "softmax_scale": 10.0}
    for found, wanted in zip(
        _found(last, last, options, False), _found(features, features, options, False), strict=True
    ):
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, wanted)


def test_empty_batch():
    output, grad = _found(*[torch.empty(0, 2, 4, 4)] * 2, {"kernel_size": 3, "stride": 2, "softmax_scale": 10.0}, False)
    assert output.shape == grad.shape == (0, 2, 4, 4)


def test_registration():
    features = torch.randn(1, 2, 2, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.fastinpaint_triton.patch_attention.default, (features, 1, 2, 10.0, False))
