import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import fastinpaint as fi
from fastinpaint.ops import _backend
from fastinpaint.reference import sobel_edges as reference
from tests.golden_data import golden, nchw, relative_error

needs_native = pytest.mark.skipif(_backend.NATIVE_ERROR is not None, reason=f"native: {_backend.NATIVE_ERROR}")
both_backends = pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])


@both_backends
def test_golden_values_and_gradient(backend):
    data = golden("sobel_edges")
    image = nchw(data["x"]).requires_grad_()
    gradients = fi.sobel_edges(image, backend=backend)
    assert relative_error(gradients, nchw(data["y"])) <= 1e-6
    gradients.backward(nchw(data["cotangent"]))
    assert relative_error(image.grad, nchw(data["dx"])) <= 1e-6


@both_backends
@given(st.integers(2, 9), st.integers(2, 40), st.integers(1, 4), st.integers(0, 2))
def test_equals_scipy(backend, height, width, channels, batch):
    image = torch.randn(batch, channels, height, width, dtype=torch.float64)
    gradients = fi.sobel_edges(image, backend=backend)
    assert gradients.shape == (batch, 2 * channels, height, width)
    for b, c in np.ndindex(batch, channels):
        plane = image[b, c].numpy()
        for axis in (0, 1):
            expected = torch.from_numpy(ndimage.sobel(plane, axis, mode="mirror"))
            torch.testing.assert_close(gradients[b, 2 * c + axis], expected)


def test_reference_gradcheck():
    torch.autograd.gradcheck(reference.sobel_edges, torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True))


@needs_native
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 3, 2), (1, 2, 2, 7), (1, 1, 3, 9), (2, 1, 70, 130)])
def test_native_gradient_is_the_transpose(shape, poisoned_memory):
    image = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(shape[0], 2 * shape[1], *shape[2:], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(reference.sobel_edges(image), image, cotangent)
    (found,) = torch.autograd.grad(fi.sobel_edges(image, backend="native"), image, cotangent, create_graph=True)
    torch.testing.assert_close(found, expected)
    (second,) = torch.autograd.grad(found, cotangent, image.detach())
    torch.testing.assert_close(second, reference.sobel_edges(image.detach()))


@needs_native
def test_native_passes_opcheck():
    torch.library.opcheck(torch.ops.fastinpaint.sobel_edges, (torch.randn(2, 3, 5, 6, requires_grad=True),))
    torch.library.opcheck(torch.ops.fastinpaint.sobel_edges_backward, (torch.randn(2, 6, 5, 6, requires_grad=True),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype):
    image = torch.rand(2, 3, 8, 7).to(dtype)
    torch.testing.assert_close(fi.sobel_edges(image), fi.sobel_edges(image.float()).to(dtype), rtol=0, atol=0)


def test_layout_of_memory_does_not_matter():
    image = torch.randn(2, 3, 9, 8)
    expected = fi.sobel_edges(image)
    torch.testing.assert_close(fi.sobel_edges(image.to(memory_format=torch.channels_last)), expected)
    strided = torch.randn(2, 3, 9, 16)[..., ::2].copy_(image)
    torch.testing.assert_close(fi.sobel_edges(strided), expected)


def test_compiles_without_graph_break():
    image = torch.rand(1, 3, 8, 8)
    compiled = torch.compile(fi.sobel_edges, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), fi.sobel_edges(image))


def test_errors_say_what_was_wanted_and_what_came():
    with pytest.raises(ValueError, match=r"image must have shape \(B, C, H, W\), got \(3, 8, 8\)"):
        fi.sobel_edges(torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match=r"floating point, got torch\.uint8"):
        fi.sobel_edges(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"at least 2, got \(1, 8\)"):
        fi.sobel_edges(torch.rand(1, 3, 1, 8))
