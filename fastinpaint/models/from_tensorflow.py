"""Networks from the variables of the original system's TensorFlow checkpoints."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from fastinpaint.models.discriminator import STRIDES, PatchDiscriminator
from fastinpaint.models.generator import INPUT_CHANNELS, RESIDUAL_BLOCKS, Attention, InpaintGenerator
from fastinpaint.models.pretrained import load_exactly

GENERATOR_SCOPE = "inpaint_net"
DISCRIMINATOR_SCOPE = "discriminator256"
OPTIMIZER_SLOTS = ("Adam", "Adam_1")
LISTED = 8  # names that an error message spells out

Variables = Mapping[str, np.ndarray]
Names = Iterator[tuple[str, str]]  # state dict name, variable name


def generator_from_tf(variables: Variables) -> InpaintGenerator:
    """Build the generator that a checkpoint holds, in evaluation mode.

    Width and kind of attention are read off the variables. Adam slots, counters and other networks' variables are
    passed over.

    Args:
        variables: Name to array, kernels HWIO, as ``read_tf_checkpoint`` gives them.

    Raises:
        ValueError: No generator in there, or a variable of it is missing, unknown or of the wrong shape.
    """
    own = _scoped(variables, GENERATOR_SCOPE, "generator")
    pooled = any("/f_conv/" in name for name in own)
    attention: Attention = "pooled" if pooled else "patch"
    names = dict(_generator_names(attention))
    _require_same_names(own, set(names.values()), f"the generator with {attention} attention")
    kernel = own["conv2d/kernel"]
    if kernel.ndim != 4 or kernel.shape[2] != INPUT_CHANNELS:
        raise ValueError(f"conv2d/kernel must be (7, 7, {INPUT_CHANNELS}, width), got {kernel.shape}")
    generator = InpaintGenerator(kernel.shape[3], attention)
    load_exactly(generator, _tensors(own, names), "TensorFlow checkpoint")
    return generator.eval()


def discriminator_from_tf(variables: Variables) -> PatchDiscriminator:
    """Build the discriminator that a checkpoint holds, spectral norm state included; as ``generator_from_tf``."""
    own = _scoped(variables, DISCRIMINATOR_SCOPE, "discriminator")
    names = dict(_discriminator_names())
    _require_same_names(own, set(names.values()), "the discriminator")
    kernel = own["conv1/kernel"]
    if kernel.ndim != 4:
        raise ValueError(f"conv1/kernel must be (4, 4, 3, width), got {kernel.shape}")
    discriminator = PatchDiscriminator(kernel.shape[3])
    load_exactly(discriminator, _tensors(own, names), "TensorFlow checkpoint")
    return discriminator.eval()


def _scoped(variables: Variables, scope: str, what: str) -> dict[str, np.ndarray]:
    """The variables under ``scope`` without that prefix, a ``:0`` at the end and the optimizer's slots."""
    own = {}
    for full_name, value in variables.items():
        name = full_name.removesuffix(":0")
        if name.startswith(f"{scope}/") and name.rsplit("/", 1)[-1] not in OPTIMIZER_SLOTS:
            own[name.removeprefix(f"{scope}/")] = np.asarray(value)
    if not own:
        raise ValueError(f"no {what} in the checkpoint: wanted names under {scope}/, got {_listed(set(variables))}")
    return own


def _require_same_names(own: Variables, wanted: set[str], what: str) -> None:
    missing, unknown = wanted - set(own), set(own) - wanted
    if missing or unknown:
        raise ValueError(f"the checkpoint does not hold {what}: missing {_listed(missing)}; unknown {_listed(unknown)}")


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:LISTED]) or "nothing"
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _tensors(own: Variables, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    tensors = {}
    for target, source in names.items():
        value = own[source].astype(np.float32)
        if value.ndim == 4:  # HWIO -> OIHW; (h, w, out, in) -> (in, out, h, w) for a transposed convolution
            value = value.transpose(3, 2, 0, 1)
        tensors[target] = torch.from_numpy(np.array(value, order="C"))
    return tensors


def _convolution(target: str, source: str) -> Names:
    yield f"{target}.weight", f"{source}/kernel"
    yield f"{target}.bias", f"{source}/bias"


def _norm(target: str, source: str) -> Names:
    yield f"{target}.weight", f"{source}/gamma"
    yield f"{target}.bias", f"{source}/beta"


def _conv_norm(target: str, convolution: str, norm: str) -> Names:
    yield from _convolution(f"{target}.convolution", convolution)
    yield from _norm(f"{target}.norm", norm)


def _numbered(name: str, index: int) -> str:
    """TensorFlow's n-th default name: ``conv2d``, ``conv2d_1``, ..."""
    return f"{name}_{index}" if index else name


def _attention(target: str, scope: str, attention: Attention) -> Names:
    yield f"{target}.gamma", f"{scope}/gamma"
    yield from _conv_norm(f"{target}.down", f"{scope}/conv2d", f"{scope}/InstanceNorm")
    up = f"{scope}/attention_down_upsample"
    yield from _conv_norm(f"{target}.up", f"{up}/conv2d_transpose", f"{up}/InstanceNorm")
    if attention == "patch":
        yield from _convolution(f"{target}.out", f"{scope}/conv2d_1")
        return
    for layer, letter in (("query", "g"), ("key", "f"), ("value", "h")):
        yield from _convolution(f"{target}.{layer}", f"{scope}/{letter}_conv/conv2d")


def _generator_names(attention: Attention) -> Names:
    """Walk the generator in creation order, which is what numbers the default names."""
    for i in range(3):
        yield from _conv_norm(f"encoder.{i}", _numbered("conv2d", i), _numbered("InstanceNorm", i))
    norm = 3
    for i in range(RESIDUAL_BLOCKS):
        for j, layer in enumerate(("dilated", "plain")):
            yield from _conv_norm(f"blocks.{i}.{layer}", f"en_64_8_{i}{j}", f"InstanceNorm_{norm}")
            norm += 1
    stages = (("quarter", "64", ""), ("half", "128", "de128_conv4_upsample"), ("full", "256", "de256_conv5_upsample"))
    convolution = 3
    for stage, size, upsample in stages:
        if upsample:
            yield from _conv_norm(f"up_{stage}", f"{upsample}/conv2d_transpose", f"{upsample}/InstanceNorm")
        yield from _attention(f"stage_{stage}.attention", f"attention_pooling_{size}", attention)
        for layer in ("embedding", "gradient_head", "image_head"):
            yield from _conv_norm(f"stage_{stage}.{layer}", f"conv2d_{convolution}", f"InstanceNorm_{norm}")
            convolution, norm = convolution + 1, norm + 1


def _discriminator_names() -> Names:
    for i in range(len(STRIDES)):
        yield from _convolution(f"layers.{i}.convolution", f"conv{i + 1}")
        yield f"layers.{i}.u", f"conv{i + 1}/u"
