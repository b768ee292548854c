"""The whole training objective."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinpaint.losses import adversarial
from fastinpaint.losses.matching import matching_loss
from fastinpaint.losses.parts import BatchPart, shares_of_parts
from fastinpaint.losses.perceptual import content_loss, gram_matrix, style_loss
from fastinpaint.losses.pixel import masked_l1, total_variation
from fastinpaint.models.generator import GeneratorOutput
from fastinpaint.models.vgg import VGG19Features
from fastinpaint.ops._checks import at_least_float32
from fastinpaint.ops.canny import canny_of_sizes
from fastinpaint.ops.edge_priority import edge_priority
from fastinpaint.ops.sobel_edges import sobel_edges
from fastinpaint.ops.structure_loss import structure_loss_terms

SCALES = ("full", "half", "quarter")
_L1_TERMS = ("l1_hole", "l1_valid", "l1_half", "l1_quarter")
_GENERATOR_LOSS: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": adversarial.hinge_generator,
    "cross_entropy": adversarial.cross_entropy_generator,
}
_DISCRIMINATOR_LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": adversarial.hinge_discriminator,
    "cross_entropy": adversarial.cross_entropy_discriminator,
}


def _weight(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class LossWeights:
    """Factor of each term, the original system's by default; a term of weight 0 is not computed.

    Raises:
        ValueError: A negative weight or an unknown kind of adversarial loss.
    """

    l1_hole: float = _weight(1.0, "L1 inside the hole")
    l1_valid: float = _weight(1.0, "L1 outside the hole")
    structure: float = _weight(1.0, "pyramid structure loss, on top of edge_alpha and grad_alpha")
    edge_alpha: float = _weight(20.0, "scale of the structure loss's edge weights; cancels, 0 drops the edge term")
    grad_alpha: float = _weight(0.1, "mean absolute gradient error of the structure loss")
    adversarial: float = _weight(0.4, "adversarial term of the generator; 0 trains without an adversary")
    adversarial_kind: Literal["hinge", "cross_entropy"] = _weight("hinge", "hinge, or cross_entropy of the sigmoid")
    gradient_penalty: float = _weight(0.0, "gradient penalty of the discriminator, inside the hole")
    content: float = _weight(0.1, "VGG features, of the completed image and again of the raw output")
    style: float = _weight(250.0, "Gram matrices of VGG features, of the completed image and of the raw output")
    total_variation: float = _weight(0.0, "total variation of the completed image")
    matching_image: float = _weight(0.0, "contextual matching of the raw output")
    matching_gradient: float = _weight(0.0, "contextual matching of the predicted gradients at full size")
    l1_half: float = _weight(0.0, "L1 inside the hole of the half-size image")
    l1_quarter: float = _weight(0.0, "L1 inside the hole of the quarter-size image")

    def __post_init__(self) -> None:
        """Refuse what cannot be a weight."""
        for name, value in vars(self).items():
            if name == "adversarial_kind":
                if value not in _GENERATOR_LOSS:
                    wanted = ", ".join(_GENERATOR_LOSS)
                    raise ValueError(f"adversarial_kind must be one of {wanted}, got {value!r}")
            elif not value >= 0:
                raise ValueError(f"loss weight {name} must be at least 0, got {value}")


class InpaintObjective(nn.Module):
    """Named, weighted terms of generator and discriminator. Reductions are float32, also under autocast.

    A mask that is all hole or all valid makes the L1 term of the empty side 0.

    Args:
        weights: Factor of each term.
        features: VGG-19 with weights; needed unless ``content`` and ``style`` are 0.

    Raises:
        ValueError: A perceptual weight without features.
    """

    def __init__(self, weights: LossWeights | None = None, features: VGG19Features | None = None) -> None:
        super().__init__()
        self.weights = weights or LossWeights()
        self.features = features
        if features is None and (self.weights.content or self.weights.style):
            raise ValueError("the content and style terms need VGG-19 features; give them or set both weights to 0")

    def generator_terms(
        self,
        image: Tensor,
        mask: Tensor,
        output: GeneratorOutput,
        discriminator: nn.Module | None = None,
        edges: Sequence[Tensor] | None = None,
        part: BatchPart | None = None,
    ) -> dict[str, Tensor]:
        """Weigh what the generator made of ``image``.

        L1 and matching judge the raw full-size output; the adversary and total variation the completed image,
        output * mask + image * (1 - mask); the perceptual terms both, in one VGG pass forward and back, beside one
        of the true image without gradient. No gradient reaches the discriminator's parameters.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W) or (1, 1, H, W), 1 = hole. One mask for the batch sums the L1 terms over the samples,
                as the original system does; a mask for each sample takes their mean.
            output: Of the generator.
            discriminator: Needed unless the ``adversarial`` weight is 0.
            edges: Maps (B, 1, h, w), 1 = edge, ordered as the output; None takes ``edge_pyramid`` of the image.
            part: The arguments are a part of a batch; the terms are then its contributions to those of the batch.

        Returns:
            Scalars: ``l1_hole``, ``l1_valid``, ``l1_half``, ``l1_quarter``, ``edge_full`` ... ``gradient_quarter``,
            ``adversarial``, ``content``, ``style``, ``total_variation``, ``matching_image``, ``matching_gradient`` as
            far as their weights are above 0, and their sum ``total``.

        Raises:
            ValueError: No discriminator, or shapes that do not fit.
        """
        weights = self.weights
        raw, mask = at_least_float32(output.images[0]), mask.to(image.dtype)
        _check(image, mask, raw)
        complete = raw * mask + image * (1 - mask)
        terms: dict[str, Tensor] = {}
        if weights.l1_hole:
            terms["l1_hole"] = weights.l1_hole * masked_l1(raw, image, mask)
        if weights.l1_valid:
            terms["l1_valid"] = weights.l1_valid * masked_l1(raw, image, 1 - mask)
        for name, weight, small in (
            ("l1_half", weights.l1_half, output.images[1]),
            ("l1_quarter", weights.l1_quarter, output.images[2]),
        ):
            if weight:
                terms[name] = weight * masked_l1(small, *_reduced(image, mask, (small.shape[-2], small.shape[-1])))
        if weights.structure and (weights.edge_alpha or weights.grad_alpha):
            maps = part.edges if part is not None and edges is None else edges
            terms |= self._structure_terms(image, output, maps)
        if weights.adversarial:
            if discriminator is None:
                raise ValueError("the adversarial term needs a discriminator; give one or set its weight to 0")
            with adversarial.frozen(discriminator):
                logits = discriminator(complete)
            terms["adversarial"] = weights.adversarial * _GENERATOR_LOSS[weights.adversarial_kind](logits)
        if weights.content or weights.style:
            terms |= self._perceptual_terms(image, torch.cat([complete, raw]))
        if weights.total_variation:
            terms["total_variation"] = weights.total_variation * total_variation(complete)
        mean = None if part is None else part.mean
        if weights.matching_image:
            matched = matching_loss(raw, image, batch_mean=mean)
            terms["matching_image"] = weights.matching_image * matched
        if weights.matching_gradient:
            matched = matching_loss(output.gradients[0], sobel_edges(image), batch_mean=mean)
            terms["matching_gradient"] = weights.matching_gradient * matched
        return _with_total(terms if part is None else part.scale(terms), raw)

    def parts(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        *,
        whole: int,
        shared_mask: bool,
        sum_ranks: Callable[[Tensor], Tensor],
    ) -> list[BatchPart]:
        """Describe the parts of a batch that this process computes, for ``generator_terms``; all processes call it.

        Args:
            images: Of each part, (b, 3, H, W).
            masks: Of each part, (b, 1, H, W) or (1, 1, H, W).
            whole: Samples of the whole batch.
            shared_mask: One mask serves the whole batch, so that the L1 terms are sums over samples.
            sum_ranks: Sums a tensor over the processes, differentiably.
        """
        height, width = images[0].shape[-2:]
        sizes = [(height // scale, width // scale) for scale in (1, 2, 4)]
        wanted = self.weights.structure and (self.weights.edge_alpha or self.weights.grad_alpha)
        edges = [edges_of_sizes(image, sizes) if wanted else None for image in images]
        with torch.no_grad():
            sums = [
                self._weight_sums(mask.to(image.dtype), maps, sizes, shared_mask)
                for image, mask, maps in zip(images, masks, edges, strict=True)
            ]
            shares = shares_of_parts(sums, sum_ranks) if sums[0] else [{} for _ in sums]
        if shared_mask:
            one = torch.ones((), device=images[0].device)
            shares = [{**part, **dict.fromkeys(_L1_TERMS, one)} for part in shares]
        return [
            BatchPart(len(image) / whole, share, maps, sum_ranks)
            for image, share, maps in zip(images, shares, edges, strict=True)
        ]

    def _weight_sums(
        self, mask: Tensor, edges: Sequence[Tensor] | None, sizes: Sequence[tuple[int, int]], shared_mask: bool
    ) -> dict[str, Tensor]:
        """Denominators of the terms that are quotients of sums over samples, by the name of the term."""
        weights = self.weights
        sums: dict[str, Tensor] = {}
        if not shared_mask:
            sums |= {"l1_hole": mask.sum(), "l1_valid": (1 - mask).sum()}
            for name, weight, size in (
                ("l1_half", weights.l1_half, sizes[1]),
                ("l1_quarter", weights.l1_quarter, sizes[2]),
            ):
                if weight:
                    sums[name] = _reduced_mask(mask, size).sum()
        if edges is not None and weights.edge_alpha:
            for scale, edge_map in zip(SCALES, edges, strict=True):
                sums[f"edge_{scale}"] = edge_priority(edge_map.to(mask.dtype)).sum()
        return sums

    def discriminator_terms(
        self,
        image: Tensor,
        mask: Tensor,
        output: GeneratorOutput,
        discriminator: nn.Module,
        part: BatchPart | None = None,
        between: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weigh how well the discriminator tells ``image`` from the completed one, both in one forward pass.

        Arguments as for ``generator_terms`` and ``adversarial.gradient_penalty``; no gradient reaches the generator.

        Returns:
            Scalars: ``adversarial`` (of weight 1), ``gradient_penalty`` where its weight is above 0, and ``total``.
        """
        weights = self.weights
        raw, mask = at_least_float32(output.images[0].detach()), mask.to(image.dtype)
        _check(image, mask, raw)
        complete = raw * mask + image * (1 - mask)
        real, fake = discriminator(torch.cat([image, complete])).chunk(2)
        terms = {"adversarial": _DISCRIMINATOR_LOSS[weights.adversarial_kind](real, fake)}
        if weights.gradient_penalty:
            penalty = adversarial.gradient_penalty(discriminator, image, complete, mask, between)
            terms["gradient_penalty"] = weights.gradient_penalty * penalty
        return _with_total(terms if part is None else part.scale(terms), raw)

    def _structure_terms(
        self, image: Tensor, output: GeneratorOutput, edges: Sequence[Tensor] | None
    ) -> dict[str, Tensor]:
        weights = self.weights
        maps = edge_pyramid(image, output.gradients) if edges is None else edges
        table = weights.structure * structure_loss_terms(
            image, output.gradients, edges=maps, edge_alpha=weights.edge_alpha, grad_alpha=weights.grad_alpha
        )
        terms: dict[str, Tensor] = {}
        for column, (name, alpha) in enumerate((("edge", weights.edge_alpha), ("gradient", weights.grad_alpha))):
            if alpha:
                terms |= {f"{name}_{scale}": table[row, column] for row, scale in enumerate(SCALES)}
        return terms

    def _perceptual_terms(self, image: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        """Compare ``fakes``, the completed and the raw images (2B, 3, H, W), with the true ones (B, 3, H, W)."""
        if self.features is None:
            raise ValueError("the perceptual terms need VGG-19 features")
        weights = self.weights
        terms: dict[str, Tensor] = {}
        with torch.no_grad():
            targets = self.features(image)
        maps = self.features(fakes)
        # A mean over twice the samples is half the sum of the two losses.
        if weights.content:
            terms["content"] = 2 * weights.content * content_loss(maps, targets)
        if weights.style:
            grams = [gram_matrix(target) for target in targets]
            terms["style"] = 2 * weights.style * style_loss(maps, grams)
        return terms


def edge_pyramid(image: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
    """Canny maps (B, 1, h, w), bool, of the image at the size of each prediction.

    Canny runs on (image + 1) / 2 of the nearest-neighbour resized image with sigma 1.5, as for the generator's input,
    not on [-1, 1], where ``pyramid_structure_loss`` alone would run it with thresholds half as strict.
    """
    return edges_of_sizes(image, [(p.shape[-2], p.shape[-1]) for p in predictions])


@torch.no_grad()
def edges_of_sizes(image: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """As ``edge_pyramid``, for sizes (h, w)."""
    return canny_of_sizes((image + 1) / 2, list(sizes), sigma=1.5)


def _reduced(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image as area means, and mask, hole wherever a pixel of it is, at a smaller size."""
    return F.adaptive_avg_pool2d(image, size), _reduced_mask(mask, size)


def _reduced_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return F.adaptive_max_pool2d(mask, size)


def _with_total(terms: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    total = torch.stack(list(terms.values())).sum() if terms else like.sum() * 0
    return {**terms, "total": total}


def _check(image: Tensor, mask: Tensor, raw: Tensor) -> None:
    batch, _, height, width = image.shape
    if raw.shape != image.shape:
        raise ValueError(f"the output must be as large as the image {tuple(image.shape)}, got {tuple(raw.shape)}")
    if mask.shape not in ((batch, 1, height, width), (1, 1, height, width)):
        wanted = f"({batch} or 1, 1, {height}, {width})"
        raise ValueError(f"mask must be {wanted} for an image {tuple(image.shape)}, got {tuple(mask.shape)}")
