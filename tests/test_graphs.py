"""A CUDA graph for each size, with a recorder that stands in for CUDA's; and, where there is a GPU, with CUDA's."""

import numpy as np
import pytest
import torch

from fastinpaint.inference.graphs import CudaRecorder, GraphPerSize
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models.generator import InpaintGenerator
from tests.helpers.recorder import FakeRecorder


class TensorRecorder(FakeRecorder):
    """Of work that returns a tensor."""

    def blank(self, run):
        return torch.full_like(run(), float("nan"))  # a recording computes nothing

    def fill(self, static, result):
        static.copy_(result)


WEIGHT = torch.tensor(3.0)


def graphs_of(recorder, weight=WEIGHT, function=None):
    held = [weight]
    run = function or (lambda image, hole: (image * held[0]).where(hole, 0))
    return GraphPerSize(run, torch.device("cpu"), lambda: held, recorder), held


def batch(side=4, count=1, dtype=torch.float32):
    return torch.rand(count, 3, side, side + 1, dtype=dtype), torch.rand(count, 1, side, side + 1) > 0.5


def test_a_size_that_comes_again_is_recorded_and_then_replayed():
    recorder = TensorRecorder()
    graphs, _ = graphs_of(recorder)
    inputs = [batch() for _ in range(4)]
    results = [graphs(*pair) for pair in inputs]
    for (image, hole), result in zip(inputs, results, strict=True):
        assert torch.equal(result, (image * 3).where(hole, 0))  # also the earlier ones: each is the caller's own
    assert recorder.calls == ["warm up", "record", "replay", "replay", "replay"]


@pytest.mark.parametrize("other", [{"side": 5}, {"count": 2}, {"dtype": torch.float64}])
def test_other_sizes_have_graphs_of_their_own(other):
    recorder = TensorRecorder()
    graphs, _ = graphs_of(recorder)
    for _ in range(3):
        for options in ({}, other):
            image, hole = batch(**options)
            assert torch.equal(graphs(image, hole), (image * 3).where(hole, 0))
    assert recorder.calls == ["warm up"] * 2 + ["record", "replay"] * 2 + ["replay"] * 2


def test_a_layout_has_a_graph_of_its_own():
    recorder = TensorRecorder()
    graphs, _ = graphs_of(recorder)
    image, hole = batch()
    for _ in range(2):
        assert torch.equal(graphs(image, hole), graphs(image.to(memory_format=torch.channels_last), hole))
    assert recorder.calls.count("record") == 2


def test_the_graph_used_longest_ago_is_dropped():
    recorder = TensorRecorder()
    graphs, _ = graphs_of(recorder)
    for side in (1, 2, 3, 4, 1, 5):  # 5 takes the place of 2
        for _ in range(2):
            graphs(*batch(side))
    recorder.calls.clear()
    for side in (1, 3, 4, 5, 2):
        graphs(*batch(side))
    assert recorder.calls == ["replay"] * 4 + ["record", "replay"]


def test_weights_may_change_but_not_move():
    recorder = TensorRecorder()
    graphs, held = graphs_of(recorder, torch.tensor(3.0))
    image, hole = batch()
    for _ in range(2):
        graphs(image, hole)
    held[0].fill_(5.0)
    assert torch.equal(graphs(image, hole), (image * 5).where(hole, 0))
    recorder.calls.clear()
    held[0] = torch.tensor(7.0)
    assert torch.equal(graphs(image, hole), (image * 7).where(hole, 0))
    assert recorder.calls == ["warm up"]


def test_large_batches_and_autocast_stay_plain():
    recorder = TensorRecorder()
    graphs, _ = graphs_of(recorder, function=lambda image, hole: image)
    for _ in range(2):
        graphs(torch.empty(1, 1, 1024, 1025), torch.empty(1))
        with torch.autocast("cpu", torch.bfloat16):
            graphs(*batch())
    assert not recorder.calls


def test_a_failed_recording_is_told_once_and_plain_calls_go_on():
    recorder = TensorRecorder("operation not permitted when stream is capturing\nmore")
    graphs, _ = graphs_of(recorder)
    image, hole = batch()
    with pytest.warns(RuntimeWarning, match=r"plain calls go on: RuntimeError: operation .* capturing$") as told:
        results = [graphs(image, hole) for _ in range(3)]
    assert all(torch.equal(result, (image * 3).where(hole, 0)) for result in results)
    assert len(told) == 1
    assert recorder.calls == ["warm up", "record"]


def pictures(count=4, size=(40, 56)):
    draw = np.random.default_rng(3)
    holes = [np.zeros(size, bool) for _ in range(count)]
    for place, hole in enumerate(holes):
        hole[4 + place : 20, 8:30] = True
    return [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)], holes


def test_fillings_are_those_without_graphs(inpainter, monkeypatch):
    images, holes = pictures()
    wanted = [inpainter(*pair) for pair in zip(images, holes, strict=True)]
    recorder = TensorRecorder()
    graphs = GraphPerSize(inpainter._predict_plainly, inpainter.device, inpainter._weights, recorder)
    monkeypatch.setattr(inpainter, "_graphs", graphs)
    for pair, filled in zip(zip(images, holes, strict=True), wanted, strict=True):
        np.testing.assert_array_equal(inpainter(*pair), filled)
    assert recorder.calls == ["warm up", "record", "replay", "replay", "replay"]


def test_a_cpu_has_no_graphs(inpainter):
    assert inpainter._graphs is None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fillings_of_a_gpu_are_those_without_graphs(precision, cuda):
    torch.manual_seed(0)
    generator = InpaintGenerator(8, head_norm=False)
    images, holes = pictures()
    plain = Inpainter(generator, cuda, precision=precision, cuda_graphs=False)
    graphed = Inpainter(generator, cuda, precision=precision)
    for pair in zip(images, holes, strict=True):
        np.testing.assert_array_equal(graphed(*pair), plain(*pair))
    assert graphed._graphs.failure is None
    assert len(graphed._graphs._graphs) == 1


@pytest.mark.gpu
def test_random_numbers_go_on_after_a_capture_that_failed(cuda):
    def work():
        torch.rand(3, device=cuda).sum().item()  # a capture cannot wait for the device

    torch.manual_seed(0)
    torch.rand(5, device=cuda)
    state = torch.cuda.get_rng_state(cuda)
    with pytest.raises(RuntimeError):
        CudaRecorder(torch.device(cuda)).record(work)
    torch.testing.assert_close(torch.cuda.get_rng_state(cuda), state)
    found = torch.rand(5, device=cuda)
    torch.cuda.set_rng_state(state, cuda)
    torch.testing.assert_close(found, torch.rand(5, device=cuda))
