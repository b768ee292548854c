import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
    monkeypatch.setattr(kernels, "WORKSPACE", 2000)  # one image, 6 to 9 queries at a time
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "kernel_size", "stride", "overlap_add"),
    [
        ((2, 8, 6, 7), 3, 2, False),  # columns cut into 64 and 8, fewer keys than a block
        ((1, 8, 9, 11), 3, 1, True),  # the last of two blocks of queries and keys is not full
        ((1, 64, 9, 8), 3, 1, False),  # the generator's 576 columns, two blocks of either
        ((1, 32, 16, 16), 1, 2, False),  # whole blocks
        ((1, 8, 7, 5), 5, 3, True),
    ],
)
def test_flash_path(shape, kernel_size, stride, overlap_add, dtype):
    features = (torch.randn(shape) / 4).to(dtype)
    arguments = (kernel_size, stride, 10.0, overlap_add)
    output, lse = kernels.patch_attention_forward(features, *arguments, path="flash")
    aggregation = "overlap_add" if overlap_add else "correlation"
    wanted = reference.patch_attention(
        features.double(), kernel_size=kernel_size, stride=stride, softmax_scale=10.0, aggregation=aggregation
    )
    assert relative_error(output.double(), wanted) <= TOLERANCE[dtype] / 2
    torch.testing.assert_close(lse, kernels.patch_attention_forward(features, *arguments, path="bmm")[1])


def test_flash_path_with_large_logits_and_any_layout():
    features = 3 * torch.randn(1, 9, 10, 8).transpose(2, 3)[:, 1:].bfloat16()  # logits reach several hundreds
    output, _ = kernels.patch_attention_forward(features, 3, 2, 10.0, False, path="flash")
    wanted = reference.patch_attention(features.double())
    assert relative_error(output.double(), wanted) <= TOLERANCE[torch.bfloat16] / 2
    assert output.stride() == torch.empty_like(features).stride()


@pytest.mark.parametrize(
    ("dtype", "depth", "capability", "path"),
    [
        (torch.bfloat16, 576, (9, 0), "flash"),
        (torch.float16, 576, (9, 0), "flash"),
        (torch.float32, 576, (9, 0), "bmm"),
        (torch.bfloat16, 1152, (9, 0), "bmm"),
        (torch.bfloat16, 330, (9, 0), "bmm"),
        (torch.bfloat16, 18, (9, 0), "bmm"),
        (torch.bfloat16, 576, (8, 0), "bmm"),
        (torch.bfloat16, 576, (10, 0), "bmm"),
        (torch.bfloat16, 576, None, "bmm"),
    ],
)
def test_choice_of_path(dtype, depth, capability, path):
    assert kernels.choose_path(dtype, depth, capability) == path


def test_paths_that_cannot_serve():
    features = torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match="path must be flash, bmm or None, got 'best'"):
        kernels.patch_attention_forward(features, 3, 2, 10.0, False, path="best")
    with pytest.raises(ValueError, match=r"path flash takes bfloat16 and float16, got torch\.float32"):
        kernels.patch_attention_forward(features, 3, 2, 10.0, False, path="flash")
    with pytest.raises(ValueError, match="path flash takes patches of 32 to 576 columns, got 585"):
        kernels.patch_attention_forward(features.new_zeros(1, 65, 4, 4).half(), 3, 2, 10.0, False, path="flash")


class _Meter(TorchDispatchMode):
    """The most bytes that tensors made inside held at a time; views of ``known`` tensors do not count."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.tensors, self.most = [], 0

    def held(self):
        self.tensors = [reference for reference in self.tensors if reference() is not None]
        storages = [tensor.untyped_storage() for reference in self.tensors if (tensor := reference()) is not None]
        sizes = {storage._cdata: storage.nbytes() for storage in storages}
        return sum(size for storage, size in sizes.items() if storage not in self.known)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.tensors.append(weakref.ref(result))
        self.most = max(self.most, self.held())
        return result


class _NoLaunch:
    def __getitem__(self, grid):
        return lambda *arguments, **options: None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(16, 64, 128, 128), (16, 128, 64, 64), (64, 256, 32, 32)])
def test_memory_beside_inputs_and_outputs(monkeypatch, shape, dtype):
    """Below 64 MiB at the generator's maps, where the scores of one image alone would take 268 MB."""
    for name in ("_unfold_kernel", "_fold_kernel", "_softmax_kernel", "_slope_kernel", "_key_gradient_kernel"):
        monkeypatch.setattr(kernels, name, _NoLaunch())
    monkeypatch.setattr(kernels._patch_flash, "_flash_kernel", _NoLaunch())
    for name in ("_product", "_add_product"):
        monkeypatch.setattr(kernels, name, lambda left, right, out: out)
    features = torch.empty(shape, dtype=dtype, device="meta")
    arguments = (3, 2, 10.0, False)
    for path in ("bmm", "flash"):
        if path == "flash" and kernels._patch_flash.gap(dtype, 9 * shape[1], None):
            continue
        with _Meter(features) as meter:
            output, lse = kernels.patch_attention_forward(features, *arguments, path=path)
        assert 2**22 < meter.most - meter.held() < 64 * 2**20
    with _Meter(features, output, lse) as meter:
        grad = kernels.patch_attention_backward(output, features, lse, *arguments)
    assert 2**22 < meter.most - meter.held() < 64 * 2**20
    assert grad.shape == shape


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
    output, lse = kernels.patch_attention_forward(features.detach(), 1, 2, 10.0, False)
    arguments = (output, features.detach(), lse, 1, 2, 10.0, False)
    torch.library.opcheck(torch.ops.fastinpaint_triton.patch_attention_backward.default, arguments)
