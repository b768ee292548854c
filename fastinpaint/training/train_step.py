"""One update of generator and discriminator from the same forward pass."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastinpaint.inference.graphs import Recorder
from fastinpaint.losses.objective import InpaintObjective
from fastinpaint.losses.parts import BatchPart
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import GeneratorOutput, InpaintGenerator
from fastinpaint.models.inputs import assemble_input, assemble_known_input
from fastinpaint.training.distributed import Ranks
from fastinpaint.training.graph import GraphedStep
from fastinpaint.training.muon import Muon


class TrainStep:
    """The networks, their objective and their optimizers.

    An update whose gradients are not all finite changes nothing, neither weights nor optimizers; the device decides
    so by itself.

    Args:
        generator: Trained in place, on the device where it lies.
        objective: Gives the named terms of both networks.
        discriminator: None trains without an adversary.
        learning_rate: Adam's step size, for both networks.
        discriminator_rate: Adam's step size for the discriminator; 0: ``learning_rate``.
        betas: Adam's decay rates.
        muon_lr: Above 0, ``Muon`` trains the weights of the generator's convolutions that a norm follows, with steps
            of this length relative to the weight's norm; 0 leaves everything to Adam.
        clip: Largest norm of each network's gradient; 0: any.
        ema: Decay of ``average``, the moving average of the generator's weights, in [0, 1); 0: there is none. In the
            first updates the decay is (1 + n) / (10 + n) after n of them, where that is less.
        precision: ``torch.bfloat16`` runs the networks under autocast.
        channels_last: Store activations channels-last.
        compile: Run the generator through ``torch.compile``.
        known_pixels_only: Build inputs with ``assemble_known_input``, else with ``assemble_input`` of the whole image.
        cuda_graph: Replay the whole update, from the input's assembly to the optimizers, as one CUDA graph.
        accumulate: Compute a batch in this many micro-batches, one after another, which saves memory. Losses and
            gradients are those of the whole batch; the contextual matching terms need it in one piece.
        ranks: The processes that share each batch; losses and gradients are those of the whole batch, too.
        shared_mask: One mask serves the whole batch; None: it does where ``update`` is given one mask.
        recorder: Records the graph; for tests.
    """

    def __init__(
        self,
        generator: InpaintGenerator,
        objective: InpaintObjective,
        discriminator: PatchDiscriminator | None = None,
        *,
        learning_rate: float = 1e-5,
        discriminator_rate: float = 0.0,
        betas: tuple[float, float] = (0.0, 0.9),
        muon_lr: float = 0.0,
        clip: float = 0.0,
        ema: float = 0.0,
        precision: torch.dtype = torch.float32,
        channels_last: bool = False,
        compile: bool = False,
        known_pixels_only: bool = True,
        cuda_graph: bool = False,
        accumulate: int = 1,
        ranks: Ranks | None = None,
        shared_mask: bool | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        if accumulate > 1 and (objective.weights.matching_image or objective.weights.matching_gradient):
            raise ValueError("the contextual matching terms need the whole batch at once: set accumulate to 1")
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = next(generator.parameters()).device
        self.generator = generator.train()
        self.discriminator = discriminator and discriminator.train()
        for network in self.networks.values():
            network.to(memory_format=self.layout)  # type: ignore[call-overload]
        if objective.features is not None:
            objective.features.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.objective = objective
        self._lonely = InpaintObjective(dataclasses.replace(objective.weights, adversarial=0.0), objective.features)
        self._adversary = discriminator is not None
        self.precision = precision
        self.known_pixels_only = known_pixels_only
        self.accumulate, self.shared_mask = accumulate, shared_mask
        self.ranks = ranks or Ranks(self.device)
        self.clip, self.ema = clip, ema
        self._forward: Callable[[Tensor], GeneratorOutput] = torch.compile(generator) if compile else generator
        self.average = copy.deepcopy(generator).requires_grad_(False) if ema else None
        self._averaged = torch.zeros((), device=self.device)  # updates of the average
        self._graphed = cuda_graph
        self._recorder = recorder
        self._graph: GraphedStep | None = None

        before_norms = set(_weights_before_norms(generator)) if muon_lr else set()
        self._rates = {"generator": learning_rate, "discriminator": discriminator_rate or learning_rate}
        self._rates["muon"] = muon_lr
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, network in self.networks.items():
            others = [parameter for parameter in network.parameters() if parameter not in before_norms]
            self.optimizers[name] = torch.optim.Adam(
                others, lr=self._own_rate(name), betas=betas, fused=True, capturable=self.device.type == "cuda"
            )
        if before_norms:
            ordered = [parameter for parameter in generator.parameters() if parameter in before_norms]
            self.optimizers["muon"] = Muon(ordered, lr=self._own_rate("muon"))

    def _own_rate(self, name: str) -> float | Tensor:
        """A rate as its optimizer holds it: a tensor on CUDA, which a graph reads anew on every replay."""
        return torch.tensor(self._rates[name], device=self.device) if self.device.type == "cuda" else self._rates[name]

    @property
    def networks(self) -> dict[str, InpaintGenerator | PatchDiscriminator]:
        """The trained networks by name."""
        if self.discriminator is None:
            return {"generator": self.generator}
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def result(self) -> InpaintGenerator:
        """The generator to use: the average where there is one."""
        return self.generator if self.average is None else self.average

    @property
    def graph(self) -> GraphedStep | None:
        """The step that is being recorded or replayed, if there is one by now."""
        return self._graph

    def scale_learning_rates(self, factor: float) -> None:
        """Set each optimizer's step size to ``factor`` times the one it began with."""
        for name, optimizer in self.optimizers.items():
            for settings in optimizer.param_groups:
                if isinstance(settings["lr"], Tensor):
                    settings["lr"].fill_(factor * self._rates[name])
                else:
                    settings["lr"] = factor * self._rates[name]

    def set_adversary(self, active: bool) -> None:
        """Train with or without the discriminator from now on; without one there is nothing to set."""
        active = active and self.discriminator is not None
        if active != self._adversary:
            self._adversary = active
            self.forget_graph()

    def forget_graph(self) -> None:
        """Record a new graph, because batches will have another shape or the update does something else."""
        if self._graph is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._graph = None

    def update(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Take one step with each network.

        Args:
            image: (B, 3, H, W) in [-1, 1], or uint8, taken as u8 / 127.5 - 1; of any device.
            mask: (B, 1, H, W) or (1, 1, H, W), 1 = hole.

        Returns:
            Named weighted terms, detached scalars; those of the discriminator begin with ``discriminator_``;
            ``skipped`` is 1 where the gradients were not finite, else 0.
        """
        if not self._graphed:
            return self._step(image.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True))
        if self._graph is None:
            self._graph = GraphedStep(self._step, self.device, self._recorder)
        return self._graph(image, mask)

    def _step(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """One update of everything, from tensors on the device; it never waits for the device."""
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        image = _signed(image)
        named, finish = self._accumulate_gradients(image, mask.to(image.dtype))
        bad = torch.zeros((), device=self.device)
        for name, wait in finish.items():
            wait()
            bad = torch.maximum(bad, self._limit(p.grad for p in self._parameters(name) if p.grad is not None))
        for name, optimizer in self.optimizers.items():
            if name in finish or name == "muon":
                optimizer.found_inf = bad  # type: ignore[attr-defined]
                optimizer.step()
        if self.average is not None:
            self._move(self.average)
        return named | {"skipped": bad}

    def _accumulate_gradients(
        self, image: Tensor, mask: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Callable[[], None]]]:
        """Run every part forward and back, and begin to sum gradients over the processes.

        Returns:
            The terms of the whole batch, and for each trained network what waits for its gradients.
        """
        samples = len(image) * self.ranks.count
        between = None
        if self._adversary and self.objective.weights.gradient_penalty:
            # drawn for the whole batch, so that a sample's place does not depend on who computes it
            between = torch.rand(samples, 1, 1, 1, dtype=image.dtype, device=self.device)
            between = between[self.ranks.rank * len(image) :][: len(image)]
        images = image.chunk(self.accumulate)
        masks = mask.chunk(self.accumulate) if len(mask) > 1 else (mask,) * len(images)
        places = between.chunk(self.accumulate) if between is not None else (None,) * len(images)
        vectors = [] if self.discriminator is None else list(self.discriminator.buffers())  # of the spectral norm
        start = [vector.clone() for vector in vectors] if len(images) > 1 else []
        totals: dict[str, Tensor] = {}
        finish: dict[str, Callable[[], None]] = {}
        for index, part in enumerate(self._parts(images, masks, len(mask) == 1)):
            if index:
                torch._foreach_copy_(vectors, start)  # every part sees the weights that the whole batch would
            terms = self._terms(images[index], masks[index], part, places[index])
            for name, losses in terms.items():
                losses["total"].backward(inputs=self._parameters(name))
                prefix = "" if name == "generator" else f"{name}_"
                for key, value in losses.items():
                    totals[prefix + key] = totals.get(prefix + key, 0) + value.detach()
                if index == len(images) - 1:  # on its way while the next network runs back
                    gradients = [p.grad for p in self._parameters(name) if p.grad is not None]
                    finish[name] = self.ranks.start_sum(gradients)
        if self.ranks.count > 1:
            totals = dict(zip(totals, self.ranks.sum(torch.stack(list(totals.values()))).unbind(), strict=True))
        return totals, finish

    def _parts(self, images: Sequence[Tensor], masks: Sequence[Tensor], one_mask: bool) -> Sequence[BatchPart | None]:
        """Say of each part what it is of the whole batch; None is the whole."""
        if len(images) == self.ranks.count == 1:
            return [None]
        return self.objective.parts(
            images,
            masks,
            whole=sum(map(len, images)) * self.ranks.count,
            shared_mask=one_mask if self.shared_mask is None else self.shared_mask,
            sum_ranks=self.ranks.sum,
        )

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return list(self.networks[name].parameters())

    @torch.no_grad()
    def _limit(self, gradients: Iterable[Tensor]) -> Tensor:
        """Clip the gradients' common norm; return 1 where it is not finite, else 0."""
        gradients = list(gradients)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.clip:
            torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        return (~norm.isfinite()).float()

    @torch.no_grad()
    def _move(self, average: InpaintGenerator) -> None:
        """Move the average towards the weights by (1 - decay) of their difference."""
        self._averaged += 1
        decay = ((1 + self._averaged) / (10 + self._averaged)).clamp(max=self.ema)
        averages: list[Tensor] = list(average.parameters())
        weights: list[Tensor] = list(self.generator.parameters())
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, 1 - decay)
        torch._foreach_add_(averages, differences)

    def _terms(
        self, image: Tensor, mask: Tensor, part: BatchPart | None, between: Tensor | None
    ) -> dict[str, dict[str, Tensor]]:
        """Loss terms of a part by network, from one forward pass of the generator."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            output = self.predict(image, mask)
            if self.discriminator is None or not self._adversary:
                objective = self.objective if self.discriminator is None else self._lonely
                return {"generator": objective.generator_terms(image, mask, output, part=part)}
            judge = self.discriminator
            return {
                "generator": self.objective.generator_terms(image, mask, output, judge, part=part),
                "discriminator": self.objective.discriminator_terms(image, mask, output, judge, part, between),
            }

    def predict(self, image: Tensor, mask: Tensor) -> GeneratorOutput:
        """Run the generator under training on a batch."""
        return self._forward(self._inputs(image, mask))

    @torch.no_grad()
    def show(self, image: Tensor, mask: Tensor) -> GeneratorOutput:
        """Run ``result`` on a batch, without gradients."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.result(self._inputs(image, mask))

    @torch.no_grad()
    def _inputs(self, image: Tensor, mask: Tensor) -> Tensor:
        inputs = (assemble_known_input if self.known_pixels_only else assemble_input)(image, mask)
        return inputs.to(memory_format=self.layout)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, buffers and average by name."""
        networks: dict[str, nn.Module] = dict(self.networks)
        if self.average is not None:
            networks["average"] = self.average
        return {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}

    def finite(self) -> bool:
        """Say whether every weight is a finite number."""
        return all(bool(p.isfinite().all()) for network in self.networks.values() for p in network.parameters())

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of networks, optimizers and average by name."""
        state: dict[str, dict[str, Any]] = {name: network.state_dict() for name, network in self.networks.items()}
        state |= {f"{name}_optimizer": optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        if self.average is not None:
            state["average"] = {**self.average.state_dict(), "updates": self._averaged}
        return state

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Restore ``state_dict``; rates and the like stay as given. Raises ValueError when it is of other networks."""
        wanted, found = set(self.state_dict()), set(state)
        if wanted != found:
            raise ValueError(f"the saved run has {sorted(found)}, this one wants {sorted(wanted)}")
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            settings = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(state[f"{name}_optimizer"])
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                group.update(own)
        if self.average is not None:
            average = dict(state["average"])
            self._averaged.copy_(average.pop("updates"))
            self.average.load_state_dict(average)
        self._graph = None

    def load_weights(self, weights: dict[str, dict[str, Tensor]]) -> None:
        """Start from weights by name: ``generator``, and where given ``discriminator`` and ``average``.

        Raises:
            RuntimeError: Weights of other networks.
        """
        self.generator.load_state_dict(weights["generator"])
        if self.discriminator is not None and "discriminator" in weights:
            self.discriminator.load_state_dict(weights["discriminator"])
        if self.average is not None:
            self.average.load_state_dict(weights.get("average", weights["generator"]))
        self._graph = None


def _signed(image: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], as ``to_signed_tensor`` has it; floating point stays as it is."""
    return image.to(torch.float32).div_(127.5).sub_(1.0) if image.dtype == torch.uint8 else image


def _weights_before_norms(generator: InpaintGenerator) -> Iterator[nn.Parameter]:
    """The weights of convolutions that a norm follows; those of the others keep their scale and are left to Adam."""
    for name, parameter in generator.named_parameters():
        if parameter.dim() == 4 and not any(part in name for part in ("_head.", ".query.", ".key.", ".out.")):
            yield parameter
