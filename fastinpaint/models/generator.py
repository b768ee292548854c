"""The inpainting generator (paper, network architecture)."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fastinpaint.models.blending import poisson_blend
from fastinpaint.models.layers import (
    ConvNorm,
    PatchAttention,
    PooledAttention,
    ResidualBlock,
    UpConvNorm,
    with_interior,
)
from fastinpaint.models.pretrained import Pretrained
from fastinpaint.ops._checks import at_least_float32, without_autocast

Attention = Literal["pooled", "patch"]
INPUT_CHANNELS = 11  # as assemble_input stacks them
RESIDUAL_BLOCKS = 8
DIVISOR = 16


class GeneratorOutput(NamedTuple):
    """What the generator predicts, each tuple ordered full, half and quarter size.

    Attributes:
        images: (B, 3, h, w) in [-1, 1]; the full-size one may exceed it in the hole where the generator blends it.
        gradients: (B, 6, h, w), Sobel gradients in the channel order of ``sobel_edges``, unbounded.
    """

    images: tuple[Tensor, Tensor, Tensor]
    gradients: tuple[Tensor, Tensor, Tensor]


pytree._register_namedtuple(GeneratorOutput, serialized_type_name="fastinpaint.GeneratorOutput")  # torch.export.save


class StructureStage(nn.Module):
    """Attention, structure embedding and the two heads of one scale.

    (B, C, h, w) -> features (B, C, h, w), embedding (B, C, h, w), image (B, 3, h, w), gradients (B, 6, h, w).
    """

    def __init__(self, channels: int, attention: Attention, head_norm: bool) -> None:
        super().__init__()
        self.attention = PooledAttention(channels) if attention == "pooled" else PatchAttention(channels)
        self.embedding = ConvNorm(channels, channels, 5)
        self.gradient_head = ConvNorm(channels, 6, 1, norm=head_norm, relu=False)
        self.image_head = ConvNorm(channels, 3, 1, norm=head_norm, relu=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return attended features, structure embedding, image and gradients.

        ``x`` carries ``self.attention.padding`` pixels of reflect padding on every side.
        """
        padding = self.embedding.padding
        padded, x = with_interior(self.attention(x, padded=True, padding=padding), padding)
        embedding = self.embedding(padded, padded=True)
        image = torch.tanh(self.image_head(embedding))
        return x, embedding, image, self.gradient_head(embedding)


class InpaintGenerator(Pretrained, nn.Module):
    """Fill holes coarse to fine and predict image and gradients at three scales. 15.1 M parameters at width 64.

    Convolutions start Glorot-uniform with zero bias, as TensorFlow's layers do by default; norms start at scale 1
    and offset 0, attention at weight 0. Biases in front of a norm have no effect; they keep converted weights whole.

    Args:
        base_channels: Width c of the full-size features, at least 1; c, 2c and 4c at full, half and quarter size.
        attention: ``"pooled"`` (the trained default) or ``"patch"``.
        head_norm: True ends the heads in an instance norm, as the original system has it, which pins the mean and
            contrast of every picture; False leaves it out and suits new training.
        poisson_blend: True blends the full-size image into the known pixels by `poisson_blend`, so that it equals
            them outside the hole and has no seam; the network then has to find gradients in the hole and no colours.
            The original system does not.

    Attributes:
        checkpoint_activations: Keep only what lies between layers and recompute the rest in the backward pass.

    Raises:
        ValueError: Another attention or a width below 1.
    """

    checkpoint_activations: bool = False

    def __init__(
        self,
        base_channels: int = 64,
        attention: Attention = "pooled",
        head_norm: bool = True,
        poisson_blend: bool = False,
    ) -> None:
        super().__init__()
        if base_channels < 1:
            raise ValueError(f"base_channels must be at least 1, got {base_channels}")
        if attention not in get_args(Attention):
            raise ValueError(f"attention must be one of {', '.join(get_args(Attention))}, got {attention!r}")
        self._config = {
            "base_channels": base_channels, "attention": attention, "head_norm": head_norm,
            "poisson_blend": poisson_blend,
        }  # fmt: skip
        self.poisson_blend = poisson_blend
        full, half, quarter = base_channels, 2 * base_channels, 4 * base_channels
        self.encoder = nn.Sequential(
            ConvNorm(INPUT_CHANNELS, full, 7),
            ConvNorm(full, half, 4, stride=2),
            ConvNorm(half, quarter, 4, stride=2),
        )
        self.blocks = nn.Sequential(*(ResidualBlock(quarter) for _ in range(RESIDUAL_BLOCKS)))
        self.stage_quarter = StructureStage(quarter, attention, head_norm)
        self.up_half = UpConvNorm(2 * quarter, half, 4)
        self.stage_half = StructureStage(half, attention, head_norm)
        self.up_full = UpConvNorm(2 * half, full, 4)
        self.stage_full = StructureStage(full, attention, head_norm)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that built this generator."""
        return dict(self._config)

    def forward(self, inputs: Tensor) -> GeneratorOutput:
        """(B, 11, H, W) as ``assemble_input`` makes it -> images and gradients; H and W divisible by 16.

        Raises:
            ValueError: Another rank, number of channels or size.
        """
        _check(inputs)
        layers: list[Any] = [*self.encoder, *self.blocks]
        consumers = [*layers[1:], self.stage_quarter.attention]
        x = inputs
        for layer, consumer in zip(layers, consumers, strict=True):
            x = self._run(layer, x, padded=x is not inputs, padding=consumer.padding)
        x, embedding, image_quarter, gradient_quarter = self._run(self.stage_quarter, x)
        x = self._run(self.up_half, torch.cat([x, embedding], 1), padding=self.stage_half.attention.padding)
        x, embedding, image_half, gradient_half = self._run(self.stage_half, x)
        x = self._run(self.up_full, torch.cat([x, embedding], 1), padding=self.stage_full.attention.padding)
        _, _, image_full, gradient_full = self._run(self.stage_full, x)
        if self.poisson_blend:
            image_full = self._blend(image_full, inputs)
        return GeneratorOutput(
            (image_full, image_half, image_quarter), (gradient_full, gradient_half, gradient_quarter)
        )

    @staticmethod
    def _blend(image: Tensor, inputs: Tensor) -> Tensor:
        with without_autocast(inputs.device):
            blended = poisson_blend(at_least_float32(image), at_least_float32(inputs[:, :3]), inputs[:, 4:5] < 0.5)
        return blended.to(image.dtype)

    def _run(self, layer: nn.Module, x: Tensor, **options: Any) -> Any:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False, **options)
        return layer(x, **options)


def _check(inputs: Tensor) -> None:
    if inputs.dim() != 4 or inputs.shape[1] != INPUT_CHANNELS:
        raise ValueError(f"the generator wants (B, {INPUT_CHANNELS}, H, W), got {tuple(inputs.shape)}")
    height, width = inputs.shape[-2:]
    if height < DIVISOR or width < DIVISOR or height % DIVISOR or width % DIVISOR:
        raise ValueError(f"the generator wants height and width divisible by {DIVISOR}, got {height} x {width}")
