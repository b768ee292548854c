"""What a training step does between its kernels never waits for a GPU and can be captured into a CUDA graph.

Tensors on the meta device stand in for those on a GPU: a mode below autograd sees every operator, and refuses those
that copy between host and device, read a value on the host, or give a result whose size depends on values.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastinpaint as fi
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.inference.prepare import mirror_pad
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_known_input
from fastinpaint.ops import _backend
from fastinpaint.reference.nearest import nearest_resize

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
    aten.index.Tensor,  # by a bool mask; by indices it is let through
}


class NoHostSync(TorchDispatchMode):
    """Raises on an operator that makes the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        by_indices = func is aten.index.Tensor and all(i is None or i.dtype == torch.int64 for i in args[1])
        if func in WAITS and not by_indices:
            raise RuntimeError(f"{func} makes the host wait")
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        devices = sorted({tensor.device.type for tensor in tensors})
        if func in (aten._to_copy.default, aten.copy_.default) and len(devices) > 1:
            raise RuntimeError(f"{func} copies between {' and '.join(devices)}")
        return result


@pytest.fixture
def device(monkeypatch):
    """A device that holds no data; it has no autocast, no Triton kernels and no copies from lists of its own."""

    def refuse(*args, **kwargs):
        raise RuntimeError("torch.tensor makes the host wait: it copies from the host")

    monkeypatch.setattr(torch, "tensor", refuse)
    monkeypatch.setattr(torch, "as_tensor", refuse)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(_backend, "_triton_gap", lambda *args: None)
    return torch.device("meta")


@pytest.fixture(params=["triton", "reference"])
def backend(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("FASTINPAINT_BACKEND", request.param)
    return request.param


def _picture(device, batch=2, height=24, width=40):
    image = torch.rand(batch, 3, height, width, device=device)
    mask = torch.rand(batch, 1, height, width, device=device)
    return image, mask


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.tensor([1.0, 2.0, 1.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x[0].copy_(torch.ones(3, 24, 40)),
    ],
)
def test_a_wait_is_seen(wait, device):
    image, _ = _picture(device)
    with NoHostSync(), pytest.raises(RuntimeError, match=r"makes the host wait|copies between|Cannot copy out of meta"):
        wait(image)


@pytest.mark.filterwarnings("ignore:fastinpaint.canny:RuntimeWarning")  # no CUDA kernel without nvcc
@pytest.mark.parametrize("edges", ["given", "canny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_assemble_input(edges, dtype, backend, device):
    image, mask = _picture(device)
    image = image.to(dtype).requires_grad_()
    with NoHostSync():
        inputs = fi.assemble_input(image, mask > 0.5, mask > 0.9 if edges == "given" else None)
        (gradient,) = torch.autograd.grad(inputs.sum(), image)
    assert inputs.shape == (2, 11, 24, 40)
    assert inputs.dtype == gradient.dtype == dtype


@pytest.mark.filterwarnings("ignore:fastinpaint.canny:RuntimeWarning")
def test_blind_input(backend, device):
    image, mask = _picture(device, height=23, width=39)
    with NoHostSync():
        padded = [mirror_pad(x) for x in (image, mask)]
        assert assemble_known_input(*padded).shape == (2, 11, 32, 48)


@pytest.mark.filterwarnings("ignore:fastinpaint.canny:RuntimeWarning")
def test_filling(backend, device):
    """What ``Inpainter`` records as a graph."""
    inpainter = Inpainter(InpaintGenerator(2, head_norm=False, poisson_blend=True), "cpu")
    inpainter.generator.to(device)
    image, mask = _picture(device, height=23, width=39)
    with NoHostSync(), torch.no_grad():
        assert inpainter._predict_plainly(image, mask > 0.5).shape == image.shape


def test_operators_and_gradients(backend, device):
    image, mask = _picture(device)
    image.requires_grad_()
    sizes = [(24, 40), (12, 20), (5, 7)]
    predictions = [torch.rand(2, 6, *size, device=device, requires_grad=True) for size in sizes]
    with NoHostSync():
        edges = [nearest_resize(mask, *size) > 0.9 for size in sizes]
        loss = fi.pyramid_structure_loss(image.detach(), predictions, edges=edges)
        small = nearest_resize(image, 7, 9)
        terms = (loss, fi.sobel_edges(image), fi.edge_priority(image[:, :1]), fi.edge_priority(mask > 0.5), small)
        gradients = torch.autograd.grad(sum(term.sum() for term in terms), [image, *predictions])
    assert [g.shape for g in gradients] == [x.shape for x in (image, *predictions)]
