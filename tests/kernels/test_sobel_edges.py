import pytest
import torch

import fastinpaint.ops.sobel_edges  # noqa: F401 - registers
from fastinpaint.reference import sobel_edges as reference
from fastinpaint_kernels import sobel_edges as kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# The least sides, one less and one more than a strip of 8 rows, more than a block of 64 columns.
SHAPES = [(1, 1, 2, 2), (2, 2, 3, 2), (1, 3, 9, 30), (1, 1, 7, 70)]
PLANES, LAST = torch.contiguous_format, torch.channels_last
# The interpreter rounds to bfloat16 by truncation.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def _close(found, expected):
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, PLANES), (torch.float32, LAST), (torch.bfloat16, LAST), (torch.float16, PLANES)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape, dtype, layout):
    batch, channels, height, width = shape
    image = torch.randn(shape).to(dtype).to(memory_format=layout)
    cotangent = torch.randn(batch, 2 * channels, height, width).to(dtype).to(memory_format=layout)
    exact = image.double().requires_grad_()
    expected = reference.sobel_edges(exact)
    gradients = kernels.sobel_edges_forward(image)
    assert gradients.dtype == dtype
    assert channels == 1 or gradients.is_contiguous(memory_format=layout)  # one channel is both
    _close(gradients, expected.detach())
    transposed = kernels.sobel_edges_backward(cotangent)
    assert transposed.dtype == dtype
    assert transposed.is_contiguous(memory_format=layout)
    _close(transposed, torch.autograd.grad(expected, exact, cotangent.double())[0])


def test_strided_image():
    image = torch.randn(1, 2, 5, 12)[..., ::2]
    assert torch.equal(kernels.sobel_edges_forward(image), kernels.sobel_edges_forward(image.contiguous()))


def test_what_is_not_finite_reaches_its_neighbours_only():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 0, 8] = float("inf")
    gradients = kernels.sobel_edges_forward(image)
    assert torch.equal(gradients.isfinite(), reference.sobel_edges(image).isfinite())
    cotangent = torch.zeros(1, 2, 9, 9)
    cotangent[0, :, 8, 0] = float("inf")
    assert kernels.sobel_edges_backward(cotangent)[0, 0, :7].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_empty(shape):
    gradients = kernels.sobel_edges_forward(torch.zeros(shape))
    assert gradients.shape == (shape[0], 2 * shape[1], 4, 4)
    assert kernels.sobel_edges_backward(gradients).shape == shape


@pytest.mark.parametrize("layout", [PLANES, LAST])
def test_registration(layout):
    image = torch.randn(1, 2, 3, 2).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.fastinpaint_triton.sobel_edges.default, (image,))
    gradients = torch.randn(1, 4, 3, 2).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.fastinpaint_triton.sobel_edges_backward.default, (gradients,))


def test_second_derivative():
    image, cotangent = torch.randn(1, 1, 4, 3, requires_grad=True), torch.randn(1, 2, 4, 3, requires_grad=True)
    gradients = torch.ops.fastinpaint_triton.sobel_edges(image)
    (first,) = torch.autograd.grad(gradients, image, cotangent, create_graph=True)
    (second,) = torch.autograd.grad(first, cotangent, image.detach())
    torch.testing.assert_close(second, gradients.detach())
