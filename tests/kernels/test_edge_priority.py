import pytest
import torch

import fastinpaint.ops.edge_priority  # noqa: F401 - registers
from fastinpaint.reference import edge_priority as reference
from fastinpaint_kernels import edge_priority as kernels
from tests.golden_data import relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# The interpreter rounds to bfloat16 by truncation.
TOLERANCE = {torch.bool: 1e-6, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 50), (2, 1, 59, 113)])
def test_equals_the_reference(shape, dtype):
    edges = (torch.rand(shape) < 0.2) if dtype == torch.bool else torch.rand(shape).to(dtype)
    edges[:, :, 0, 0] = 1
    found = kernels.edge_priority(edges, 5, 1.3, 2)
    assert found.dtype == (torch.float32 if dtype == torch.bool else dtype)
    assert relative_error(found.double(), reference.edge_priority(edges.double(), sigma=1.3)) <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("kernel_size", "sigma", "iterations"),
    [(1, 1.0, 3), (5, 1.0, 0), (3, 0.4, 1), (7, 2.5, 3), (25, 6.0, 1), (3, 1e-200, 2)],
)
def test_options(kernel_size, sigma, iterations):
    edges = torch.rand(1, 1, 23, 40)
    options = {"kernel_size": kernel_size, "sigma": sigma, "iterations": iterations}
    expected = reference.edge_priority(edges.double(), **options)
    assert relative_error(kernels.edge_priority(edges, *options.values()).double(), expected) <= 1e-6


def test_strided_and_empty_maps():
    edges = torch.rand(2, 1, 9, 16)[..., ::2]
    assert torch.equal(kernels.edge_priority(edges, 5, 1.0, 2), kernels.edge_priority(edges.contiguous(), 5, 1.0, 2))
    for shape in ((0, 1, 8, 8), (2, 1, 0, 8)):
        assert kernels.edge_priority(torch.zeros(shape), 5, 1.0, 2).shape == shape


def test_registration():
    run = torch.ops.fastinpaint_triton.edge_priority.default
    torch.library.opcheck(run, (torch.rand(2, 1, 5, 6, requires_grad=True), 5, 1.0, 2))
    torch.library.opcheck(run, (torch.rand(2, 1, 5, 6) < 0.5, 5, 1.0, 2))
