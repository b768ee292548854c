import pytest
import torch

from fastinpaint.models.discriminator import PatchDiscriminator, SpectralConv, same_padding
from fastinpaint.models.from_tensorflow import discriminator_from_tf
from tests.golden_data import golden, golden_variables, nchw, relative_error
from tests.helpers.tolerances import TOLERANCES


@pytest.mark.parametrize("training", [False, True])
def test_against_the_original(training):
    arrays = golden("generator_w16")
    discriminator = discriminator_from_tf(golden_variables()).train(training)
    found = discriminator(nchw(arrays["image"]))
    assert relative_error(found, nchw(arrays["discriminator"])) < TOLERANCES["discriminator"]


@pytest.mark.parametrize(("size", "logits"), [((64, 48), (8, 6)), ((65, 33), (9, 5)), ((8, 8), (1, 1))])
def test_size_of_the_logits(size, logits):
    assert PatchDiscriminator(2)(torch.zeros(1, 3, *size)).shape == (1, 1, *logits)


def test_a_logit_sees_70_by_70_pixels():
    image = torch.randn(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
    PatchDiscriminator(2).double()(image)[0, 0, 10, 10].backward()
    seen = image.grad.abs().sum((0, 1)).nonzero()
    extent = seen.amax(0) - seen.amin(0) + 1
    assert extent.tolist() == [70, 70]


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="base_channels must be at least 1, got 0"):
        PatchDiscriminator(0)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 4, 32, 32\)"):
        PatchDiscriminator(1)(torch.zeros(1, 4, 32, 32))


def test_spectral_norm_state_survives_a_round_trip(tmp_path):
    discriminator, image = PatchDiscriminator(2), torch.randn(1, 3, 32, 32)
    discriminator(image)
    discriminator.save_pretrained(tmp_path)
    loaded = PatchDiscriminator.from_pretrained(tmp_path)
    assert torch.equal(loaded.layers[0].u, discriminator.layers[0].u)
    assert torch.equal(loaded(image), discriminator.eval()(image))


def test_training_forward_traces_into_one_graph_and_moves_u():
    discriminator, image = PatchDiscriminator(2), torch.randn(1, 3, 32, 32)
    before = discriminator.layers[0].u.clone()
    wanted = discriminator.eval()(image)
    found = torch.compile(discriminator.train(), backend="eager", fullgraph=True)(image)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert not torch.equal(discriminator.layers[0].u, before)


def test_autocast_keeps_the_spectral_norm_in_float32():
    discriminator, image = PatchDiscriminator(4).eval(), torch.randn(2, 3, 32, 32)
    wanted, weight = discriminator(image), discriminator.layers[1].normalised_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(discriminator.layers[1].normalised_weight(), weight)
        found = discriminator(image)
    assert relative_error(found.float(), wanted) < 0.05  # bfloat16 carries 8 bits through 5 layers


@pytest.mark.parametrize("size", [(16, 24), (15, 24), (16, 23), (9, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_inside_or_before_the_convolution_is_the_same(size, stride):
    layer, x = SpectralConv(3, 4, stride, leaky_relu=False).double().eval(), torch.randn(2, 3, *size).double()
    rows, columns = (same_padding(side, stride) for side in size)
    padded = torch.nn.functional.pad(x, (*columns, *rows))
    wanted = torch.nn.functional.conv2d(padded, layer.normalised_weight(), layer.convolution.bias, stride)
    torch.testing.assert_close(layer(x), wanted)
