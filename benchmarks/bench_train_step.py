"""One training step, all losses, and its parts, against the same step by eager references and under torch.compile.

VGG-19's weights are drawn, not loaded: they take the same time.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_generator import drawn_generator, reference_backend
from benchmarks.machine import Work
from benchmarks.results import GRAPH
from benchmarks.suite import Benchmark, Case, Competitors, Run
from fastinpaint.inference.precision import layout_on
from fastinpaint.losses.objective import InpaintObjective, LossWeights, edge_pyramid
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import GeneratorOutput
from fastinpaint.models.inputs import assemble_known_input
from fastinpaint.models.vgg import VGG19Features
from fastinpaint.reference.nearest import nearest_resize
from fastinpaint.training.train_step import TrainStep

WHOLE = "whole step"
GROUPS = {  # weights that are not zero in a part of the objective
    "L1": ("l1_hole", "l1_valid"),
    "structure loss and its Canny": ("structure", "edge_alpha", "grad_alpha"),
    "adversarial": ("adversarial",),
    "perceptual": ("content", "style"),
}
PARTS = (
    "input assembly",
    "generator forward",
    "generator forward + backward",
    "Canny at three scales",
    *GROUPS,
    "discriminator",
    "optimisers",
)
# For an image of 256² at width 64, forward and backward.
STEP_FLOPS, NETWORK_FLOPS, VGG_FLOPS = 763e9, 155e9, 240e9
STEPS_BEFORE_GRAPH = 4
Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class Setting:
    """Size and precision of a step."""

    device: str
    batch: int
    side: int
    width: int
    dtype: torch.dtype


def cases(device: str) -> list[Case]:
    float32, bfloat16 = torch.float32, torch.bfloat16
    settings = {
        "cpu": [Setting("cpu", 8, 96, 16, float32)],
        "cuda": [Setting("cuda", 16, 256, 64, dtype) for dtype in (bfloat16, float32)],
        "dry": [Setting("cuda", 1, 16, 8, dtype) for dtype in (float32, bfloat16)],
    }[device]
    parts = PARTS if device != "dry" else (*PARTS[:1], *PARTS[3:5], *PARTS[-2:])
    wholes = settings[:1] if device == "dry" else settings  # VGG-19 in bfloat16 takes a CPU seconds
    by_part = settings[-1] if device == "dry" else settings[0]
    return [_case(s, WHOLE) for s in wholes] + [_case(by_part, f"part: {part}") for part in parts]


def _case(setting: Setting, part: str) -> Case:
    area, width = setting.batch * (setting.side / 256) ** 2, (setting.width / 64) ** 2
    flops = {
        WHOLE: (STEP_FLOPS - VGG_FLOPS) * width + VGG_FLOPS,
        "part: generator forward": NETWORK_FLOPS * width,
        "part: generator forward + backward": 3 * NETWORK_FLOPS * width,
        "part: perceptual": VGG_FLOPS,
    }.get(part, 0.0)
    dtype = str(setting.dtype).removeprefix("torch.")
    return Case(
        f"{setting.batch} x {setting.side}², {dtype}, {part}",
        {"setting": setting, "part": part.removeprefix("part: ")},
        Work(bytes=1.0, flops=flops * area, dtype=dtype),  # where there are no products: no floor
        items=setting.batch,
        size=setting.side,
    )


def pictures(setting: Setting) -> tuple[Tensor, Tensor]:
    """Smooth noise with edges (B, 3, H, W) in [-1, 1] and a box of a quarter of the side (B, 1, H, W)."""
    batch, side, device = setting.batch, setting.side, setting.device
    smooth = F.interpolate(torch.rand(batch, 3, 8, 8, device=device), size=(side, side), mode="bilinear")
    image = ((6 * smooth).round() / 6 + 0.02 * torch.randn(batch, 3, side, side, device=device)).clamp(0, 1)
    mask = torch.zeros(batch, 1, side, side, device=device)
    for index in range(batch):
        y, x = (int(v) for v in torch.randint(side // 8, side * 5 // 8, (2,)))
        mask[index, :, y : y + side // 4, x : x + side // 4] = 1
    return image * 2 - 1, mask


def make_train_step(setting: Setting, *, channels_last: bool, **options: Any) -> TrainStep:
    """Networks and losses, the same weights on every call."""
    torch.manual_seed(0)
    generator = drawn_generator(setting.device, setting.width)
    with torch.device(setting.device):
        discriminator = PatchDiscriminator(setting.width)
        features = VGG19Features()
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features.to(device=setting.device, memory_format=layout)  # type: ignore[call-overload]
    objective = InpaintObjective(LossWeights(), features)
    return TrainStep(
        generator,
        objective,
        discriminator.to(setting.device),
        precision=setting.dtype,
        channels_last=channels_last,
        **options,
    )


def _channels_last(device: str) -> bool:
    """Whether training stores activations channels-last by default."""
    return layout_on(torch.device(device)) is torch.channels_last


def _canny(image: Tensor, *, sigma: float, mask: Tensor | None = None) -> Tensor:
    """``fastinpaint.canny`` of RGB images by scikit-image, one after the other."""
    from skimage.color import rgb2gray
    from skimage.feature import canny

    pictures = [rgb2gray(picture) for picture in image.movedim(1, -1).numpy()]
    masks = [None] * len(pictures) if mask is None else list(mask[:, 0].numpy())
    maps = [canny(picture, sigma, mask=known) for picture, known in zip(pictures, masks, strict=True)]
    return torch.from_numpy(np.stack(maps))[:, None]


def _canny_of_sizes(image: Tensor, sizes: Sequence[tuple[int, int]], *, sigma: float) -> list[Tensor]:
    return [_canny(nearest_resize(image, *size), sigma=sigma) for size in sizes]


@contextmanager
def eager_step() -> Iterator[None]:
    """All operators by their reference, and on a CPU Canny by scikit-image, as the original system's loader has it."""
    with ExitStack() as stack:
        stack.enter_context(reference_backend())
        if find_spec("skimage") is not None:
            for name, function in (
                ("models.inputs.canny", _canny),
                ("losses.objective.canny_of_sizes", _canny_of_sizes),
            ):
                stack.enter_context(mock.patch(f"fastinpaint.{name}", function))
        yield


def competitors(device: str, setting: Setting, part: str) -> Competitors:
    """Name to a call: a step that changes the weights, or a part of it that leaves them."""
    return _steps(setting) if part == WHOLE else _parts(setting, part)


def _steps(setting: Setting) -> Competitors:
    image, mask = pictures(setting)
    cuda = setting.device == "cuda"

    def step(
        train_step: Callable[[], TrainStep], around: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Run:
        made: list[TrainStep] = []

        def run() -> list[Tensor]:
            if made:
                return taken(made[0])
            made.append(train_step())
            first = taken(made[0])
            for _ in range(
                0 if setting.device == "cpu" else STEPS_BEFORE_GRAPH
            ):  # tuning, the optimizers' state, a graph's recording
                taken(made[0])
            failure = getattr(getattr(made[0], "graph", None), "failure", None)
            if failure:
                raise RuntimeError(f"no graph: {failure}")
            return first

        def taken(train_step: TrainStep) -> list[Tensor]:
            with around():
                terms = train_step.update(image, mask)
            return [torch.stack([terms[name].float() for name in sorted(terms) if name != "skipped"])]

        return run

    calls: dict[str, Run | str] = {
        "ours": step(lambda: make_train_step(setting, channels_last=_channels_last(setting.device))),
        "eager": step(lambda: make_train_step(setting, channels_last=False), reference_backend if cuda else eager_step),
    }
    if cuda and "cuda_graph" in inspect.signature(TrainStep.__init__).parameters:
        calls["ours" + GRAPH] = step(lambda: make_train_step(setting, channels_last=True, cuda_graph=True))
    if cuda:
        calls["torch.compile"] = step(lambda: make_train_step(setting, channels_last=True, compile=True))
    return calls


def _parts(setting: Setting, part: str) -> Competitors:
    def run(work: Callable[[], Sequence[Tensor]], around: Callable[[], AbstractContextManager[Any]]) -> Run:
        def call() -> Sequence[Tensor]:
            with around():
                return work()

        return call

    return {
        "ours": run(_part(_workshop(setting, _channels_last(setting.device)), part), nullcontext),
        "eager": run(_part(_workshop(setting, False), part), reference_backend),
    }


@dataclass(frozen=True)
class Workshop:
    """What the parts of a step work on."""

    train_step: TrainStep
    discriminator: PatchDiscriminator
    image: Tensor
    mask: Tensor
    inputs: Tensor
    output: GeneratorOutput  # leaves
    slopes: Maps  # gradients of the six maps


@lru_cache(maxsize=2)
def _workshop(setting: Setting, channels_last: bool) -> Workshop:
    train_step = make_train_step(setting, channels_last=channels_last)
    assert train_step.discriminator is not None
    torch.manual_seed(1)
    image, mask = pictures(setting)
    with reference_backend(), torch.no_grad():
        inputs = assemble_known_input(image, mask)
        output = make_train_step(setting, channels_last=False).generator(inputs)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    leaves = [tuple(m.contiguous(memory_format=layout).requires_grad_() for m in maps) for maps in output]
    slopes = tuple(torch.randn_like(map_) for maps in leaves for map_ in maps)
    networks = [*train_step.generator.parameters(), *train_step.discriminator.parameters()]
    for parameter in networks:
        parameter.grad = torch.randn_like(parameter)
    inputs = inputs.contiguous(memory_format=layout)
    return Workshop(train_step, train_step.discriminator, image, mask, inputs, GeneratorOutput(*leaves), slopes)


def _part(shop: Workshop, part: str) -> Callable[[], Sequence[Tensor]]:
    train_step, image, mask = shop.train_step, shop.image, shop.mask
    leaves = [*shop.output.images, *shop.output.gradients]
    half = train_step.precision == torch.bfloat16

    def autocast() -> torch.autocast:
        return torch.autocast(image.device.type, torch.bfloat16, enabled=half)

    def forward() -> Maps:
        with autocast():
            images, gradients = train_step.generator(shop.inputs)
        return (*images, *gradients)

    def back() -> Maps:
        maps = forward()
        slopes = [slope.to(map_.dtype) for map_, slope in zip(maps, shop.slopes, strict=True)]
        return _with_gradients(maps, train_step.generator.parameters(), slopes)

    def discriminator() -> Maps:
        with autocast():
            terms = train_step.objective.discriminator_terms(image, mask, shop.output, shop.discriminator)
        return _with_gradients([terms["total"]], shop.discriminator.parameters())

    def optimisers() -> Maps:
        for optimizer in train_step.optimizers.values():
            optimizer.step()
        return (next(train_step.generator.parameters()).detach(),)

    def assembly() -> Maps:
        with torch.no_grad():
            return (assemble_known_input(image, mask),)

    whole: dict[str, Callable[[], Sequence[Tensor]]] = {
        "input assembly": assembly,
        "generator forward": forward,
        "generator forward + backward": back,
        "Canny at three scales": lambda: [edges.float() for edges in edge_pyramid(image, shop.output.gradients)],
        "discriminator": discriminator,
        "optimisers": optimisers,
    }
    if part in whole:
        return whole[part]
    numbers: dict[str, Any] = {name: 0.0 for name, value in vars(LossWeights()).items() if isinstance(value, float)}
    numbers |= {name: getattr(LossWeights(), name) for name in GROUPS[part]}
    objective = InpaintObjective(LossWeights(**numbers), train_step.objective.features)

    def losses() -> Maps:
        with autocast():
            terms = objective.generator_terms(image, mask, shop.output, shop.discriminator)
        return _with_gradients([terms["total"]], leaves)

    return losses


def _with_gradients(values: Sequence[Tensor], leaves: Iterable[Tensor], slopes: Sequence[Tensor] | None = None) -> Maps:
    gradients = torch.autograd.grad(values, list(leaves), slopes, allow_unused=True)
    return (*(value.detach() for value in values), *(g for g in gradients if g is not None))


def tolerance(device: str, setting: Setting, part: str) -> float | None:
    """Losses agree closely; gradients of whole networks differ with every rounding before them."""
    if part in (WHOLE, "L1", "input assembly", "Canny at three scales"):
        return 0.1 if setting.dtype == torch.bfloat16 else 1e-2
    return None


BENCHMARK = Benchmark(
    title="Training step, all losses, VGG-19 of drawn weights: per image",
    cases=cases,
    competitors=competitors,
    ours={"cpu": "ours", "cuda": "ours"},
    reference=("eager", "ours"),
    tolerance=tolerance,
    notes=(
        "Ours is channels-last, eager contiguous by the reference backends, on a CPU with Canny by "
        "scikit-image where that is installed; attention's gamma is 1. bfloat16 is autocast; float32 convolutions may "
        "use TensorFloat-32, as torch has it by default.",
        "The terms of the first step are compared, not the gradients of whole networks. Losses: forward and backward "
        "to the generator's maps.",
    ),
    sets=1,
    graph=False,
    rate=True,
)
