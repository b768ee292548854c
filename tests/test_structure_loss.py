import pytest
import torch

import fastinpaint as fi
from fastinpaint.ops.structure_loss import structure_loss_terms
from fastinpaint.reference import structure_loss as reference
from tests.golden_data import golden, nchw, relative_error


def _case(name):
    data = golden(name)
    scales = [index for index in range(3) if f"predict_{index}" in data]
    predictions = [nchw(data[f"predict_{index}"]).requires_grad_() for index in scales]
    edges = [nchw(data[f"edge_{index}"]) for index in scales]
    alphas = {name: float(data[name]) for name in ("edge_alpha", "grad_alpha")}
    return data, nchw(data["image"]), predictions, edges, alphas


@pytest.mark.parametrize("name", ["pyramid_structure_loss", "pyramid_structure_loss_rect"])
@pytest.mark.parametrize("give_edges", [True, False])
def test_golden_value_and_gradients(name, give_edges):
    data, image, predictions, edges, alphas = _case(name)
    terms = structure_loss_terms(image, predictions, edges=edges if give_edges else None, **alphas)
    for index, prediction in enumerate(predictions):
        assert terms[index].sum().item() == pytest.approx(float(data[f"loss_{index}"]), rel=1e-5)
        assert prediction.grad is None
    loss = fi.pyramid_structure_loss(image, predictions, edges=edges if give_edges else None, **alphas)
    assert loss.item() == pytest.approx(float(data["loss"]), rel=1e-5)
    loss.backward()
    for index, prediction in enumerate(predictions):
        assert relative_error(prediction.grad, nchw(data[f"dpredict_{index}"])) <= 1e-5


@pytest.mark.parametrize("name", ["pyramid_structure_loss", "pyramid_structure_loss_rect"])
def test_golden_canny_maps_pixel_for_pixel(name):
    _, image, _, edges, _ = _case(name)
    for edge_map in edges:
        height, width = edge_map.shape[-2:]
        rows = torch.arange(height) * image.shape[-2] // height
        columns = torch.arange(width) * image.shape[-1] // width
        resized = image[..., rows[:, None], columns]
        assert torch.equal(fi.canny(resized, sigma=1.5).float(), edge_map)


def test_no_edge_gives_zero_instead_of_nan():
    prediction = torch.randn(2, 6, 8, 8, requires_grad=True)
    image = torch.zeros(2, 3, 8, 8)
    terms = structure_loss_terms(image, [prediction], edges=[torch.zeros(2, 1, 8, 8)])
    assert terms[0, 0] == 0
    assert terms[0, 1].item() == pytest.approx(0.1 * prediction.abs().mean().item())
    terms.sum().backward()
    torch.testing.assert_close(prediction.grad, 0.1 * prediction.detach().sign() / prediction.numel())


def test_reference_gradcheck():
    image = torch.rand(1, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    edges = [(torch.rand(1, 1, 6, 5) < 0.3).double(), (torch.rand(1, 1, 3, 3) < 0.5).double()]
    predictions = [torch.randn(1, 6, *e.shape[-2:], dtype=torch.float64, requires_grad=True) for e in edges]
    torch.autograd.gradcheck(
        lambda image, *predictions: reference.pyramid_structure_loss(image, predictions, edges=edges),
        (image, *predictions),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_summed_in_float32(dtype):
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    prediction = torch.randn(1, 6, 16, 16).to(dtype)
    loss = fi.pyramid_structure_loss(image, [prediction])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(fi.pyramid_structure_loss(image, [prediction.float()]).item(), rel=1e-6)


def test_autocast_changes_nothing():
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    prediction = torch.randn(1, 6, 16, 16)
    expected = fi.pyramid_structure_loss(image, [prediction])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fi.pyramid_structure_loss(image, [prediction]), expected)


def test_compiles_without_graph_break():
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    predictions = [torch.randn(1, 6, 16, 16), torch.randn(1, 6, 7, 5)]
    compiled = torch.compile(fi.pyramid_structure_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, predictions), fi.pyramid_structure_loss(image, predictions))


def test_memory_layout_does_not_matter():
    image = torch.rand(2, 3, 12, 10)
    prediction = torch.randn(2, 6, 12, 10)
    expected = fi.pyramid_structure_loss(image, [prediction])
    channels_last = fi.pyramid_structure_loss(
        image.to(memory_format=torch.channels_last), [prediction.to(memory_format=torch.channels_last)]
    )
    torch.testing.assert_close(channels_last, expected)


@pytest.mark.parametrize("empty_batch", [torch.zeros(0, 3, 8, 8)])
def test_empty_batch_costs_nothing(empty_batch):
    assert fi.pyramid_structure_loss(empty_batch, [torch.zeros(0, 6, 8, 8)]).item() == 0


def test_errors_say_what_was_wanted_and_what_came():
    image, prediction = torch.rand(2, 3, 8, 8), torch.rand(2, 6, 8, 8)
    with pytest.raises(ValueError, match=r"predictions\[0\] must have shape \(2, 6, h, w\), got \(2, 3, 8, 8\)"):
        fi.pyramid_structure_loss(image, [torch.rand(2, 3, 8, 8)])
    with pytest.raises(ValueError, match="at least one gradient map, got none"):
        fi.pyramid_structure_loss(image, [])
    with pytest.raises(TypeError, match="sequences of tensors"):
        fi.pyramid_structure_loss(image, prediction)
    with pytest.raises(ValueError, match="one edge map for each of 1 predictions, got 2"):
        fi.pyramid_structure_loss(image, [prediction], edges=[torch.zeros(2, 1, 8, 8)] * 2)
    with pytest.raises(ValueError, match=r"edges\[0\] must have shape \(2, 1, 8, 8\), got \(2, 1, 4, 4\)"):
        fi.pyramid_structure_loss(image, [prediction], edges=[torch.zeros(2, 1, 4, 4)])
