"""One forward and backward of the whole training graph, against the original system."""

import dataclasses

import numpy as np
import pytest
import torch

from fastinpaint.losses.objective import InpaintObjective, LossWeights, edge_pyramid
from fastinpaint.models.from_tensorflow import (
    _discriminator_names,
    _generator_names,
    discriminator_from_tf,
    generator_from_tf,
)
from fastinpaint.models.inputs import assemble_input
from tests.golden_data import golden, golden_variables, golden_vgg, nchw
from tests.helpers.tolerances import TOLERANCES

SIZES = {"full": 256, "half": 128, "quarter": 64}


@pytest.fixture(scope="module")
def step():
    """Terms of both networks and the gradient norm of every variable after one backward each."""
    wanted = golden("training_losses_w16")
    image = nchw(wanted["image_u8"].astype(np.float32) / 127.5 - 1)
    mask = torch.from_numpy(wanted["mask"].astype(np.float32))[None, None]
    edges = [_unpacked(wanted[f"edge_{size}"], size) for size in SIZES.values()]
    variables = golden_variables()
    generator, discriminator = generator_from_tf(variables), discriminator_from_tf(variables)
    objective = InpaintObjective(dataclasses.replace(LossWeights(), total_variation=0.1), golden_vgg())
    output = generator(assemble_input(image, mask, edges[0]))
    terms = objective.generator_terms(image, mask, output, discriminator, edges)
    terms["total"].backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    judged = objective.discriminator_terms(image, mask, output, discriminator)
    judged["total"].backward()
    norms = {}
    scopes = (
        ("inpaint_net", generator, _generator_names("pooled")),
        ("discriminator256", discriminator, _discriminator_names()),
    )
    for scope, network, names in scopes:
        parameters = dict(network.named_parameters())
        norms |= {
            f"{scope}/{source}": 0.0 if parameters[name].grad is None else parameters[name].grad.norm().item()
            for name, source in names
            if name in parameters
        }
    return {name: term.item() for name, term in terms.items()}, judged, norms, wanted, (image, edges)


def _unpacked(bits, size):
    return torch.from_numpy(np.unpackbits(bits).reshape(2, 1, size, size).astype(np.float32))


def test_every_term_of_the_generator(step):
    terms, _, _, wanted, _ = step
    names = {"total": "g_loss", "l1_hole": "loss:l1_loss_fore_256", "l1_valid": "loss:l1_loss_back_256"}
    names |= {"content": "loss:content_loss_256", "style": "loss:style_loss_256", "adversarial": "loss:g_loss_256"}
    names |= {"total_variation": "loss:tv_loss_256"}
    names |= {f"edge_{scale}": f"loss:edge_l1_loss_{size}" for scale, size in SIZES.items()}
    names |= {f"gradient_{scale}": f"loss:grad_l1_loss_{size}" for scale, size in SIZES.items()}
    assert set(names) == set(terms)
    unweighted = {"adversarial": 0.4, "total_variation": 0.1}  # the original system logs these two before the weight
    for name, source in names.items():
        expected = unweighted.get(name, 1.0) * float(wanted[source])
        assert terms[name] == pytest.approx(expected, rel=TOLERANCES["training_term"]), name


def test_the_discriminators_total(step):
    _, judged, _, wanted, _ = step
    assert judged["total"].item() == pytest.approx(float(wanted["d_loss"]), rel=TOLERANCES["training_term"])


def test_gradient_norm_of_every_variable(step):
    _, _, norms, wanted, _ = step
    expected = {name.removeprefix("gnorm:"): float(value) for name, value in wanted.items() if "gnorm:" in name}
    assert expected.keys() <= norms.keys()
    assert all(norms[name] == 0 for name in norms.keys() - expected.keys())  # heads whose image has no loss
    for name, norm in expected.items():
        if norm < TOLERANCES["training_zero_gradient"]:
            assert norms[name] < TOLERANCES["training_zero_gradient"], name
        else:
            assert norms[name] == pytest.approx(norm, rel=TOLERANCES["training_gradient_norm"]), name


def test_computed_edges_at_full_size_are_those_of_the_original_loader(step):
    *_, (image, edges) = step
    found = edge_pyramid(image, [torch.empty(2, 6, 256, 256)])[0]
    assert (found != edges[0].bool()).float().mean() < 1e-4  # greys that differ in the last bit from scikit-image's
