"""The networks, objective and optimizers that the options ask for."""

from __future__ import annotations

import dataclasses
import logging

import torch

from fastinpaint.inference.precision import layout_on
from fastinpaint.losses.objective import InpaintObjective, LossWeights
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.vgg import VGG19Features
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.distributed import Ranks
from fastinpaint.training.train_step import TrainStep

logger = logging.getLogger(__name__)


def build_train_step(config: TrainConfig, ranks: Ranks) -> TrainStep:
    """Build what the options ask for, with weights drawn from ``config.seed``."""
    device = ranks.device
    cuda, last = device.type == "cuda", layout_on(device) is torch.channels_last
    if cuda:
        torch.backends.cudnn.benchmark = True  # shapes are fixed
    torch.manual_seed(config.seed)
    generator = InpaintGenerator(config.base_channels, config.attention, config.head_norm, config.poisson_blend)
    generator.checkpoint_activations = config.checkpoint_activations
    if config.identity_blocks:
        for block in generator.blocks:
            torch.nn.init.zeros_(block.get_parameter("plain.norm.weight"))
    objective = InpaintObjective(*_weights_and_features(config))
    discriminator = PatchDiscriminator(config.discriminator_channels) if config.losses.adversarial else None
    half = config.precision in ("bfloat16", "bf16") or (config.precision == "auto" and cuda)
    draws = config.losses.matching_image or config.losses.matching_gradient  # torch.randperm cannot be in a graph
    return TrainStep(
        generator.to(device),
        objective.to(device),
        discriminator and discriminator.to(device),
        learning_rate=config.learning_rate,
        discriminator_rate=config.discriminator_rate,
        betas=(config.beta1, config.beta2),
        muon_lr=config.muon_lr,
        clip=config.clip,
        ema=config.ema,
        precision=torch.bfloat16 if half else torch.float32,
        channels_last=last if config.channels_last is None else config.channels_last,
        compile=config.compile,
        known_pixels_only=config.known_pixels_only,
        cuda_graph=cuda
        and (config.cuda_graph == "on" or (config.cuda_graph == "auto" and not draws and ranks.count == 1)),
        accumulate=config.accumulate,
        ranks=ranks,
        shared_mask=config.masks.shared,
    )


def _weights_and_features(config: TrainConfig) -> tuple[LossWeights, VGG19Features | None]:
    weights = config.losses
    if not (weights.content or weights.style):
        return weights, None
    if config.vgg is None:
        logger.warning("no VGG-19 weights given (option vgg): the perceptual terms are off")
        return dataclasses.replace(weights, content=0.0, style=0.0), None
    return weights, VGG19Features.from_file(config.vgg)
