import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastinpaint.models import conv_relu
from fastinpaint.models.vgg import VGG19Features


def plainly(x, weight, bias, geometry):
    return F.relu(F.conv2d(x, weight, bias, *geometry))


@pytest.fixture
def fused(monkeypatch):
    """A CPU that counts as CUDA, with a stand-in for cuDNN's call; what it was called with."""
    calls = []

    def stand_in(x, *rest):
        calls.append(x.dtype)
        return plainly(x, *rest)

    monkeypatch.setattr(conv_relu, "_suits", {})
    monkeypatch.setattr(conv_relu, "_fused", stand_in)
    monkeypatch.setattr(conv_relu, "_half", lambda x: torch.bfloat16)
    return calls


def frozen_convolution(channels=5):
    return nn.Conv2d(channels, 8, 3, padding=1).requires_grad_(False)


def test_value_and_gradient_are_those_of_the_two_layers(fused, monkeypatch):
    monkeypatch.setattr(conv_relu, "_half", lambda x: x.dtype)
    convolution, x = frozen_convolution().double(), torch.randn(2, 5, 6, 7, dtype=torch.float64)
    leaf, twin = (x.clone().requires_grad_() for _ in range(2))
    found, wanted = conv_relu.conv_relu(leaf, convolution), F.relu(convolution(twin))
    cotangent = torch.randn_like(wanted)
    found.backward(cotangent)
    wanted.backward(cotangent)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(leaf.grad, twin.grad)
    assert torch.autograd.gradcheck(lambda x: conv_relu.conv_relu(x, convolution), leaf)
    assert convolution.weight.grad is None


def test_vgg_is_the_same(fused, monkeypatch):
    features = VGG19Features().to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 32, 32).requires_grad_()
    maps = features(image)
    assert set(fused) == {torch.bfloat16}
    called = len(fused)
    monkeypatch.setattr(conv_relu, "_half", lambda x: None)
    wanted = features(image)
    assert len(fused) == called
    for a, b in zip(maps, wanted, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).norm() < 0.05 * b.norm()
    gradients = [torch.autograd.grad(sum(m.float().sum() for m in result), image)[0] for result in (maps, wanted)]
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[1].norm()


def test_each_kind_of_call_is_compared_once(fused):
    convolution = frozen_convolution()
    seen = []
    for size in (6, 6, 6, 8, 8):
        before = len(fused)
        assert conv_relu.conv_relu(torch.randn(2, 5, size, size), convolution) is not None
        seen.append(len(fused) - before > 1)  # a comparison calls it as well
    assert seen == [True, False, False, True, False]


@pytest.mark.parametrize("wrong", ["refuses", "no bias", "no relu", "nan", "layout"])
def test_a_call_that_cannot_serve_leaves_the_two_layers(fused, monkeypatch, wrong):
    def call(x, weight, bias, geometry):
        if wrong == "refuses":
            raise RuntimeError("Unable to find an engine to execute this computation")
        if wrong == "no bias":
            return F.relu(F.conv2d(x, weight, None, *geometry))
        if wrong == "no relu":
            return F.conv2d(x, weight, bias, *geometry)
        y = plainly(x, weight, bias, geometry)
        return y.contiguous(memory_format=torch.channels_last) if wrong == "layout" else y * torch.nan

    tried = []
    monkeypatch.setattr(conv_relu, "_fused", lambda *args: tried.append(1) or call(*args))
    convolution, x = frozen_convolution(), torch.randn(2, 5, 6, 6)
    nn.init.ones_(convolution.bias)
    assert [conv_relu.conv_relu(x, convolution) for _ in range(3)] == [None] * 3
    assert len(tried) == 1


def test_nothing_is_compared_while_a_graph_is_captured(fused, monkeypatch):
    capturing = [True]
    monkeypatch.setattr(conv_relu, "_capturing", lambda x: capturing[0])
    convolution, x = frozen_convolution(), torch.randn(2, 5, 6, 6)
    assert conv_relu.conv_relu(x, convolution) is None
    assert not fused
    capturing[0] = False
    conv_relu.conv_relu(x, convolution)
    capturing[0] = True
    assert conv_relu.conv_relu(x, convolution) is not None


def test_weights_that_learn_keep_the_two_layers(fused):
    assert conv_relu.conv_relu(torch.randn(2, 5, 6, 6), nn.Conv2d(5, 8, 3)) is None


def test_cpus_keep_the_two_layers():
    with torch.autocast("cpu", torch.bfloat16):
        assert conv_relu.conv_relu(torch.randn(2, 5, 6, 6).bfloat16(), frozen_convolution()) is None
