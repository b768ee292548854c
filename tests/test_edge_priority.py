import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastinpaint as fi
from fastinpaint.ops import _backend
from fastinpaint.reference import edge_priority as reference
from tests.golden_data import golden, nchw, relative_error

needs_native = pytest.mark.skipif(_backend.NATIVE_ERROR is not None, reason=f"native: {_backend.NATIVE_ERROR}")
both_backends = pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])


@both_backends
def test_golden_values_and_gradient(backend):
    data = golden("priority_mask")
    edges = nchw(data["x"]).requires_grad_()
    priority = fi.edge_priority(edges, backend=backend)
    assert relative_error(priority, nchw(data["y"])) <= 1e-6
    priority.backward(nchw(data["cotangent"]))
    assert relative_error(edges.grad, nchw(data["dx"])) <= 1e-6


@both_backends
@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([1, 3, 5, 7]),
    st.floats(0.3, 3.0),
    st.integers(0, 3),
)
def test_equals_opencv(backend, height, width, kernel_size, sigma, iterations):
    edges = (torch.rand(1, 1, height, width, dtype=torch.float64) < 0.3).double()
    expected = edges[0, 0].numpy()
    kernel = cv2.getGaussianKernel(kernel_size, sigma)
    for _ in range(iterations):
        expected = cv2.sepFilter2D(expected, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    options = {"kernel_size": kernel_size, "sigma": sigma, "iterations": iterations, "backend": backend}
    priority = fi.edge_priority(edges, **options)
    np.testing.assert_allclose(priority[0, 0].numpy(), expected, atol=1e-12)


def test_reference_gradcheck():
    edges = torch.rand(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(reference.edge_priority, edges)


@needs_native
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 50), (2, 1, 200, 70)])
def test_native_gradient_equals_reference(shape, dtype, tolerance, poisoned_memory):
    edges = torch.rand(shape).to(dtype).requires_grad_()
    cotangent = torch.rand(shape).to(dtype)
    exact = edges.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.edge_priority(exact, sigma=1.3), exact, cotangent.double())
    (found,) = torch.autograd.grad(fi.edge_priority(edges, sigma=1.3, backend="native"), edges, cotangent)
    assert relative_error(found.double(), expected) <= tolerance


@needs_native
def test_native_passes_opcheck():
    arguments = (torch.rand(2, 1, 5, 6, requires_grad=True), 5, 1.0, 2)
    torch.library.opcheck(torch.ops.fastinpaint.edge_priority, arguments)


@needs_native
def test_native_says_where_it_cannot_serve():
    with pytest.raises(ValueError, match="the blurs reach 66 pixels, above 64"):
        fi.edge_priority(torch.rand(1, 1, 8, 8), iterations=33, backend="native")


def test_bool_map_counts_as_float32():
    edges = torch.rand(2, 1, 9, 7) < 0.2
    priority = fi.edge_priority(edges)
    assert priority.dtype == torch.float32
    torch.testing.assert_close(priority, fi.edge_priority(edges.float()), rtol=0, atol=0)


def test_stays_within_zero_and_one_and_spreads():
    edges = torch.zeros(1, 1, 9, 9)
    edges[0, 0, 4, 4] = 1
    priority = fi.edge_priority(edges)
    assert priority.sum().item() == pytest.approx(1, abs=1e-6)
    assert (priority > 0).all()


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 1, 0, 8)])
def test_empty(shape):
    assert fi.edge_priority(torch.zeros(shape)).shape == shape


def test_compiles_without_graph_break():
    edges = torch.rand(1, 1, 8, 8)
    compiled = torch.compile(fi.edge_priority, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(edges), fi.edge_priority(edges))


def test_errors_say_what_was_wanted_and_what_came():
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\), got \(1, 3, 8, 8\)"):
        fi.edge_priority(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="kernel_size must be odd and positive, got 4"):
        fi.edge_priority(torch.rand(1, 1, 8, 8), kernel_size=4)
    with pytest.raises(ValueError, match="sigma must be above 0 pixels, got 0"):
        fi.edge_priority(torch.rand(1, 1, 8, 8), sigma=0)
    with pytest.raises(ValueError, match="iterations must be at least 0, got -1"):
        fi.edge_priority(torch.rand(1, 1, 8, 8), iterations=-1)
