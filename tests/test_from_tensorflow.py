import numpy as np
import pytest
import torch

from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.from_tensorflow import (
    _discriminator_names,
    _generator_names,
    discriminator_from_tf,
    generator_from_tf,
)
from fastinpaint.models.generator import InpaintGenerator
from tests.golden_data import golden_variables


@pytest.fixture(scope="module")
def variables():
    return golden_variables()


def as_variables(network, names, scope):
    """The inverse of the conversion."""
    state = network.state_dict()
    return {
        f"{scope}/{source}": (state[t].permute(2, 3, 1, 0) if state[t].dim() == 4 else state[t]).numpy()
        for t, source in names
    }


def test_every_variable_is_used_and_every_weight_is_set(variables):
    names = [f"inpaint_net/{source}" for _, source in _generator_names("pooled")]
    names += [f"discriminator256/{source}" for _, source in _discriminator_names()]
    assert sorted(names) == sorted(name for name in variables if "Adam" not in name and "/" in name)
    assert {target for target, _ in _generator_names("pooled")} == InpaintGenerator(1).state_dict().keys()
    assert {target for target, _ in _generator_names("patch")} == InpaintGenerator(1, "patch").state_dict().keys()
    assert {target for target, _ in _discriminator_names()} == PatchDiscriminator(1).state_dict().keys()


def test_width_and_attention_are_read_off(variables):
    generator = generator_from_tf(variables)
    assert generator.config == {
        "base_channels": 16, "attention": "pooled", "head_norm": True, "poisson_blend": False
    }  # fmt: skip
    assert not generator.training
    assert discriminator_from_tf(variables).config == {"base_channels": 16}


@pytest.mark.parametrize("attention", ["pooled", "patch"])
def test_round_trip_through_variables(attention):
    generator = InpaintGenerator(3, attention)
    loaded = generator_from_tf(as_variables(generator, _generator_names(attention), "inpaint_net"))
    assert loaded.config == generator.config
    for name, tensor in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_optimizer_slots_counters_and_graph_suffixes_are_passed_over(variables):
    cluttered = {f"{name}:0": value for name, value in variables.items()}
    for name, value in variables.items():
        cluttered |= {f"{name}/Adam": value * 0, f"{name}/Adam_1": value * 0}
    cluttered |= {"beta1_power": np.float32(0), "beta2_power_1": np.float32(0.9), "global_step": np.int64(7)}
    found, wanted = generator_from_tf(cluttered).state_dict(), generator_from_tf(variables).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    discriminator_from_tf(cluttered)


def without(variables, name):
    return {key: value for key, value in variables.items() if key != name}


def test_what_does_not_fit_is_named(variables):
    kernel = "inpaint_net/en_64_8_31/kernel"
    cases = (
        (without(variables, kernel), "missing en_64_8_31/kernel; unknown nothing"),
        ({**variables, "inpaint_net/extra/kernel": np.zeros(1)}, "missing nothing; unknown extra/kernel"),
        ({**variables, kernel: np.zeros((3, 3, 8, 8), np.float32)}, "blocks.3.plain.convolution.weight"),
        ({**variables, "inpaint_net/conv2d/kernel": np.zeros((7, 7, 5, 16))}, "must be .7, 7, 11, width., got"),
        ({"resnet/conv1/kernel": np.zeros(1)}, "wanted names under inpaint_net/, got resnet/conv1/kernel"),
        ({}, "got nothing"),
    )
    for broken, message in cases:
        with pytest.raises(ValueError, match=message):
            generator_from_tf(broken)
    with pytest.raises(ValueError, match="missing conv3/u"):
        discriminator_from_tf(without(variables, "discriminator256/conv3/u"))
    with pytest.raises(ValueError, match="no discriminator"):
        discriminator_from_tf({"inpaint_net/conv2d/kernel": np.zeros(1)})
