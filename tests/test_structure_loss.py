import os
import subprocess
import sys

import pytest
import torch

import fastinpaint as fi
from fastinpaint.ops import _backend
from fastinpaint.ops.structure_loss import structure_loss_terms
from fastinpaint.reference import structure_loss as reference
from tests.golden_data import golden, nchw, relative_error

needs_native = pytest.mark.skipif(_backend.NATIVE_ERROR is not None, reason=f"native: {_backend.NATIVE_ERROR}")
both_backends = pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])

# (image, predictions): the pyramid of the generator, odd sides, sides that share no factor, the smallest, enlarging
SIZES = [
    ((64, 64), [(64, 64), (32, 32), (16, 16)]),
    ((37, 51), [(37, 51), (18, 25), (9, 7), (2, 2), (40, 77)]),
    ((3, 200), [(3, 200), (200, 3)]),
]


def _case(name):
    data = golden(name)
    scales = [index for index in range(3) if f"predict_{index}" in data]
    predictions = [nchw(data[f"predict_{index}"]).requires_grad_() for index in scales]
    edges = [nchw(data[f"edge_{index}"]) for index in scales]
    alphas = {name: float(data[name]) for name in ("edge_alpha", "grad_alpha")}
    return data, nchw(data["image"]), predictions, edges, alphas


@pytest.mark.parametrize("name", ["pyramid_structure_loss", "pyramid_structure_loss_rect"])
@pytest.mark.parametrize("give_edges", [True, False])
@both_backends
def test_golden_value_and_gradients(name, give_edges, backend):
    data, image, predictions, edges, alphas = _case(name)
    alphas["backend"] = backend
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


@both_backends
def test_no_edge_gives_zero_instead_of_nan(backend):
    prediction = torch.randn(2, 6, 8, 8, requires_grad=True)
    image = torch.zeros(2, 3, 8, 8)
    terms = structure_loss_terms(image, [prediction], edges=[torch.zeros(2, 1, 8, 8)], backend=backend)
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


def _random_case(image_size, sizes, batch=2, dtype=torch.float32):
    image = torch.rand(batch, 3, *image_size) * 2 - 1
    predictions = [(torch.randn(batch, 6, *size) * 2).to(dtype).requires_grad_() for size in sizes]
    edges = [torch.rand(batch, 1, *size) < 0.1 for size in sizes]
    return image, predictions, edges


@needs_native
@pytest.mark.parametrize(("image_size", "sizes"), SIZES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # float32: taps, targets and coefficients are rounded once each; half precision rounds the gradient to 11 or 8 bits
    [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.float16, 4e-4), (torch.bfloat16, 3e-3)],
)
def test_native_equals_float64_reference(image_size, sizes, dtype, tolerance, poisoned_memory):
    image, predictions, edges = _random_case(image_size, sizes, dtype=dtype)
    exact = [prediction.detach().double().requires_grad_() for prediction in predictions]
    expected = reference.structure_loss_terms(image.double(), exact, edges=edges, edge_alpha=3.0, grad_alpha=0.7)
    terms = structure_loss_terms(image, predictions, edges=edges, edge_alpha=3.0, grad_alpha=0.7, backend="native")
    torch.testing.assert_close(terms.double(), expected, rtol=1e-6, atol=0)
    incoming = torch.randn(len(sizes), 2) * 1024  # half precision would lose smaller gradients to underflow
    terms.backward(incoming)
    expected.backward(incoming.double())
    for prediction, wanted in zip(predictions, exact, strict=True):
        assert prediction.grad.dtype == dtype
        assert relative_error(prediction.grad.double(), wanted.grad) <= tolerance


@needs_native
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_native_takes_edges_and_image_of_any_type(dtype):
    image, predictions, edges = _random_case((12, 20), [(12, 20), (5, 9)])
    expected = structure_loss_terms(image, predictions, edges=edges, backend="reference")
    found = structure_loss_terms(image, predictions, edges=[e.to(dtype) for e in edges], backend="native")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    if dtype in (torch.bfloat16, torch.float16):
        low = image.to(dtype)
        expected = structure_loss_terms(low.float(), predictions, edges=edges, backend="native")
        found = structure_loss_terms(low, predictions, edges=edges, backend="native")
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_gradient_takes_the_layout_of_the_prediction(dtype):
    image, (prediction,), edges = _random_case((19, 24), [(19, 24)], dtype=dtype)
    channels_last = prediction.detach().to(memory_format=torch.channels_last).requires_grad_()
    strided = torch.zeros(2, 6, 19, 48, dtype=dtype)[..., ::2].copy_(prediction.detach()).requires_grad_()
    losses = []
    for each in (prediction, channels_last, strided):
        losses.append(structure_loss_terms(image, [each], edges=edges, backend="native"))
        losses[-1].sum().backward()
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    assert channels_last.grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(prediction.grad, channels_last.grad)
    assert torch.equal(prediction.grad, strided.grad)


@needs_native
def test_native_bits_do_not_depend_on_the_number_of_threads():
    image, predictions, edges = _random_case((96, 160), [(96, 160), (48, 80)])
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            terms = structure_loss_terms(image, predictions, edges=edges, backend="native")
            results.append((terms, *torch.autograd.grad(terms.sum(), predictions)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_native_sums_many_pixels_accurately():
    image, predictions, edges = _random_case((512, 512), [(512, 512)], batch=4)
    exact = [prediction.detach().double() for prediction in predictions]
    expected = reference.structure_loss_terms(image.double(), exact, edges=edges)
    found = structure_loss_terms(image, predictions, edges=edges, backend="native")
    torch.testing.assert_close(found.double(), expected, rtol=2e-7, atol=0)


@needs_native
def test_native_gradient_is_zero_where_the_error_is():
    image = torch.zeros(1, 3, 8, 8)
    prediction = torch.tensor([-1.0, 0.0, 2.0, -0.0, 1e-30, float("nan")]).view(1, 6, 1, 1).repeat(1, 1, 8, 8)
    prediction.requires_grad_()
    edges = [torch.ones(1, 1, 8, 8)]
    structure_loss_terms(image, [prediction], edges=edges, backend="native").sum().backward()
    assert torch.equal(prediction.grad.sign()[0, :, 4, 4], torch.tensor([-1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))


@needs_native
def test_native_says_where_it_cannot_serve():
    image, predictions, edges = _random_case((8, 8), [(8, 8)])
    image.requires_grad_()
    with pytest.raises(ValueError, match="gradients with respect to predictions, not to image or edges"):
        structure_loss_terms(image, predictions, edges=edges, backend="native")
    with torch.no_grad():
        structure_loss_terms(image, predictions, edges=edges, backend="native")
    with pytest.raises(ValueError, match="float64 image"):
        structure_loss_terms(image.detach().double(), predictions, edges=edges, backend="native")
    terms = structure_loss_terms(image.detach(), predictions, edges=edges, backend="native")
    (gradient,) = torch.autograd.grad(terms.sum(), predictions, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


@needs_native
def test_native_passes_opcheck():
    image, predictions, edges = _random_case((9, 12), [(9, 12), (4, 5)])
    arguments = (image, predictions, edges, 20.0, 0.1)
    torch.library.opcheck(torch.ops.fastinpaint.structure_loss, arguments)
    _, *saved = torch.ops.fastinpaint.structure_loss(*arguments)
    predictions = [prediction.detach() for prediction in predictions]
    torch.library.opcheck(torch.ops.fastinpaint.structure_loss_backward, (torch.randn(2, 2), *saved, predictions))


@needs_native
def test_native_on_the_least_instruction_set():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "equals_float64"]
    environment = {**os.environ, "FASTINPAINT_ISA": "baseline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


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


@both_backends
def test_compiles_without_graph_break(backend):
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    predictions = [torch.randn(1, 6, 16, 16, requires_grad=True), torch.randn(1, 6, 7, 5, requires_grad=True)]
    compiled = torch.compile(fi.pyramid_structure_loss, fullgraph=True, backend="aot_eager")
    found, expected = (loss(image, predictions, backend=backend) for loss in (compiled, fi.pyramid_structure_loss))
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, predictions) for loss in (found, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_memory_layout_does_not_matter():
    image = torch.rand(2, 3, 12, 10)
    prediction = torch.randn(2, 6, 12, 10)
    expected = fi.pyramid_structure_loss(image, [prediction])
    channels_last = fi.pyramid_structure_loss(
        image.to(memory_format=torch.channels_last), [prediction.to(memory_format=torch.channels_last)]
    )
    torch.testing.assert_close(channels_last, expected)


@both_backends
def test_empty_batch_costs_nothing(backend):
    prediction = torch.zeros(0, 6, 8, 8, requires_grad=True)
    loss = fi.pyramid_structure_loss(torch.zeros(0, 3, 8, 8), [prediction], backend=backend)
    assert loss.item() == 0
    loss.backward()
    assert prediction.grad.shape == (0, 6, 8, 8)


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
    with pytest.raises(ValueError, match=r"sides must be at least 2, got image \(2, 3, 1, 8\)"):
        fi.pyramid_structure_loss(image[:, :, :1], [prediction])
    with pytest.raises(ValueError, match=r"sides must be at least 2, got predictions\[1\] \(2, 6, 8, 1\)"):
        fi.pyramid_structure_loss(image, [prediction, prediction[..., :1]])
    with pytest.raises(ValueError, match=r"one device, got image on cpu, predictions\[0\] on meta$"):
        fi.pyramid_structure_loss(image, [prediction.to("meta")])
