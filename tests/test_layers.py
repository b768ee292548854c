import pytest
import torch

from fastinpaint.models import layers
from fastinpaint.models.discriminator import SpectralConv
from fastinpaint.models.layers import ConvNorm, PatchAttention, PooledAttention, ResidualBlock, UpConvNorm
from tests.golden_data import golden, load_golden, nchw, parameter, relative_error
from tests.helpers.tolerances import TOLERANCES

OP = "attention_pooling"


def convolution(target, source):
    return {f"{target}weight": f"{source}/kernel", f"{target}bias": f"{source}/bias"}


def conv_norm(target, source, norm):
    return convolution(f"{target}convolution.", source) | {
        f"{target}norm.weight": f"{norm}/gamma",
        f"{target}norm.bias": f"{norm}/beta",
    }


def half_size(up_scope=f"{OP}/attention_down_upsample"):
    down = conv_norm("down.", f"{OP}/conv2d", f"{OP}/InstanceNorm")
    up = conv_norm("up.", f"{up_scope}/conv2d_transpose", f"{up_scope}/InstanceNorm")
    return {"gamma": f"{OP}/gamma", **down, **up}


POOLED = half_size() | {
    name: source
    for layer, letter in (("query", "g"), ("key", "f"), ("value", "h"))
    for name, source in convolution(f"{layer}.", f"{OP}/{letter}_conv/conv2d").items()
}
PATCH = {"gamma": f"{OP}/gamma", **convolution("out.", f"{OP}/conv2d")}
UP = conv_norm("", "upsample/conv2d_transpose", "upsample/InstanceNorm")
CASES = {
    f"gen_conv_k{k}_s{s}_r{r}": (ConvNorm(5, 8, k, stride=s, rate=r), conv_norm("", "conv2d", "InstanceNorm"))
    for k, s, r in ((1, 1, 1), (3, 1, 2), (3, 2, 1), (4, 2, 1), (5, 1, 1), (7, 1, 1))
} | {
    "gen_deconv_k3": (UpConvNorm(8, 6, 3), UP),
    "gen_deconv_k4": (UpConvNorm(8, 6, 4), UP),
    "resnet_block": (
        ResidualBlock(8),
        conv_norm("dilated.", "blk0", "InstanceNorm") | conv_norm("plain.", "blk1", "InstanceNorm_1"),
    ),
    "attention_pooled_d2": (PooledAttention(64), POOLED),
    "attention_patch_k3_d2": (PatchAttention(16), half_size() | convolution("out.", f"{OP}/conv2d_1")),
    "attention_patch_k3_d1": (PatchAttention(16, down_scale=False), PATCH),
    "attention_patch_k3_s1": (PatchAttention(16, stride=1, down_scale=False), PATCH),
    "attention_patch_k5_s2": (PatchAttention(16, kernel_size=5, down_scale=False), PATCH),
    "dis_conv_s1": (SpectralConv(5, 8, 1), {**convolution("convolution.", "c"), "u": "c/u"}),
    "dis_conv_s2": (SpectralConv(5, 8, 2), {**convolution("convolution.", "c"), "u": "c/u"}),
}


@pytest.mark.parametrize("name", CASES)
def test_layer_and_gradients_against_the_original(name):
    layer, names = CASES[name]
    arrays = golden(name)
    load_golden(layer, arrays, names)
    x = nchw(arrays["x"]).requires_grad_()
    y = layer(x)
    assert relative_error(y, nchw(arrays["y"])) < TOLERANCES["layer"]
    (y * nchw(arrays["cotangent"])).sum().backward()
    assert relative_error(x.grad, nchw(arrays["dx"])) < TOLERANCES["layer_gradient"]
    for target, found in layer.named_parameters():
        wanted = parameter(arrays[f"d:op/{names[target]}"])
        kernel = parameter(arrays[f"d:op/{names[target.replace('bias', 'weight')]}"])
        if wanted.norm() < TOLERANCES["zero_gradient"] * kernel.norm():
            assert found.grad.norm() < TOLERANCES["zero_gradient"] * kernel.norm(), target
        else:
            assert relative_error(found.grad, wanted) < TOLERANCES["layer_gradient"], target


def test_attention_width_is_a_sixteenth_of_the_channels_but_at_least_one():
    assert PooledAttention(64).query.out_channels == 4
    assert PooledAttention(8).query.out_channels == 1


@pytest.mark.parametrize("attention", [PooledAttention, PatchAttention])
def test_attention_starts_switched_off(attention):
    x, layer = torch.randn(1, 16, 8, 12), attention(16)
    expected = x if attention is PooledAttention else torch.relu(layer.out(x))
    assert torch.equal(layer(x), expected)


def test_spectral_conv_in_training_moves_u_and_in_evaluation_does_not():
    layer, x = SpectralConv(3, 8, 2), torch.randn(1, 3, 16, 16)
    before = layer.u.clone()
    evaluated = layer.eval()(x)
    assert torch.equal(layer.u, before)
    assert torch.equal(layer.train()(x), evaluated)
    assert not torch.equal(layer.u, before)


def test_spectral_conv_converges_to_a_largest_singular_value_of_one():
    layer = SpectralConv(3, 8, 2)
    for _ in range(100):
        layer.normalised_weight()
    assert torch.linalg.matrix_norm(layer.normalised_weight().flatten(1), 2).item() == pytest.approx(1, abs=1e-4)


def test_two_training_forwards_before_one_backward():
    layer, x = SpectralConv(3, 8, 2), torch.randn(1, 3, 16, 16)
    (layer(x).sum() + layer(x).sum()).backward()
    assert layer.convolution.weight.grad.isfinite().all()


@pytest.mark.parametrize("made", [lambda: ConvNorm(5, 8, 3, stride=2), lambda: UpConvNorm(5, 8, 4)])
def test_without_the_bias_in_front_of_a_norm_nothing_changes(made, monkeypatch):
    layer, x = made().double(), torch.randn(2, 5, 8, 12, dtype=torch.float64)
    torch.nn.init.normal_(layer.convolution.bias)
    cotangent = torch.randn_like(layer(x))
    found = {}
    for without in (False, True):
        monkeypatch.setattr(layers, "_without_bias", lambda x, without=without: without)
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (y * cotangent).sum().backward()
        found[without] = [y, leaf.grad, layer.convolution.weight.grad, layer.norm.weight.grad, layer.norm.bias.grad]
        assert (layer.convolution.bias.grad is None) == without
    torch.testing.assert_close(found[True], found[False], rtol=1e-9, atol=1e-9)


def test_a_convolution_without_a_norm_keeps_its_bias(monkeypatch):
    monkeypatch.setattr(layers, "_without_bias", lambda x: True)
    layer, x = ConvNorm(5, 8, 3, norm=False, relu=False), torch.randn(2, 5, 8, 12)
    before = layer(x)
    torch.nn.init.ones_(layer.convolution.bias)
    torch.testing.assert_close(layer(x), before + 1)
