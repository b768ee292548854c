"""One update of generator and discriminator from the same forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastinpaint.inference.prepare import blind_input
from fastinpaint.losses.objective import InpaintObjective
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import GeneratorOutput, InpaintGenerator
from fastinpaint.models.inputs import assemble_input
from fastinpaint.training.muon import Muon


class Learner:
    """The networks, their objective and their optimizers.

    Args:
        generator: Trained in place, on the device where it lies.
        objective: Gives the named terms of both networks.
        discriminator: None trains without an adversary.
        learning_rate: Adam's step size, for both networks.
        betas: Adam's decay rates.
        kernel_rate: Above 0, ``Muon`` trains the generator's convolution kernels but those of the heads, with steps of
            this length relative to the kernel's norm; 0 leaves everything to Adam.
        precision: ``torch.bfloat16`` runs the networks under autocast.
        channels_last: Store activations channels-last.
        compile: Run the generator through ``torch.compile``.
        hide_holes: Build inputs with ``blind_input``, else with ``assemble_input`` of the whole picture.
    """

    def __init__(
        self,
        generator: InpaintGenerator,
        objective: InpaintObjective,
        discriminator: PatchDiscriminator | None = None,
        *,
        learning_rate: float = 1e-5,
        betas: tuple[float, float] = (0.0, 0.9),
        kernel_rate: float = 0.0,
        precision: torch.dtype = torch.float32,
        channels_last: bool = False,
        compile: bool = False,
        hide_holes: bool = True,
    ) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = next(generator.parameters()).device
        self.generator = generator.train()
        self.discriminator = discriminator and discriminator.train()
        for network in self.networks.values():
            network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.objective = objective
        self.precision = precision
        self.hide_holes = hide_holes
        self._forward: Callable[[Tensor], GeneratorOutput] = torch.compile(generator) if compile else generator
        kernels = set(_kernels(generator)) if kernel_rate else set()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, network in self.networks.items():
            others = [parameter for parameter in network.parameters() if parameter not in kernels]
            self.optimizers[name] = torch.optim.Adam(others, lr=learning_rate, betas=betas, fused=True)
        if kernels:
            self.optimizers["kernels"] = Muon([p for p in generator.parameters() if p in kernels], lr=kernel_rate)
        self._rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    @property
    def networks(self) -> dict[str, InpaintGenerator | PatchDiscriminator]:
        """The trained networks by name."""
        if self.discriminator is None:
            return {"generator": self.generator}
        return {"generator": self.generator, "discriminator": self.discriminator}

    def set_pace(self, pace: float) -> None:
        """Set each optimizer's step size to ``pace`` times the one it began with."""
        for name, optimizer in self.optimizers.items():
            for settings in optimizer.param_groups:
                settings["lr"] = pace * self._rates[name]

    def update(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Take one step with each network.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W) or (1, 1, H, W), 1 = hole.

        Returns:
            Named weighted terms, detached scalars; those of the discriminator begin with ``discriminator_``.
        """
        terms = self._generator_and_discriminator_terms(image, mask)
        for name, network in self.networks.items():
            network.zero_grad(set_to_none=True)
            terms[name]["total"].backward(inputs=list(network.parameters()))
        for optimizer in self.optimizers.values():
            optimizer.step()
        named = {key: value.detach() for key, value in terms["generator"].items()}
        adversary = terms.get("discriminator", {})
        return named | {f"discriminator_{key}": value.detach() for key, value in adversary.items()}

    def _generator_and_discriminator_terms(self, image: Tensor, mask: Tensor) -> dict[str, dict[str, Tensor]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            output = self.predict(image, mask)
            terms = {"generator": self.objective.generator_terms(image, mask, output, self.discriminator)}
            if self.discriminator is not None:
                terms["discriminator"] = self.objective.discriminator_terms(image, mask, output, self.discriminator)
        return terms

    def predict(self, image: Tensor, mask: Tensor) -> GeneratorOutput:
        """Run the generator on a batch."""
        with torch.no_grad():
            inputs = (blind_input if self.hide_holes else assemble_input)(image, mask)
        return self._forward(inputs.to(memory_format=self.layout))

    def finite(self) -> bool:
        """Say whether every weight is a finite number."""
        return all(bool(p.isfinite().all()) for network in self.networks.values() for p in network.parameters())

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of networks and optimizers by name."""
        networks = {name: network.state_dict() for name, network in self.networks.items()}
        return networks | {f"{name}_optimizer": opt.state_dict() for name, opt in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Restore ``state_dict``. Raises ValueError when it is of other networks."""
        wanted, found = set(self.state_dict()), set(state)
        if wanted != found:
            raise ValueError(f"the saved run has {sorted(found)}, this one wants {sorted(wanted)}")
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[f"{name}_optimizer"])


def _kernels(generator: InpaintGenerator) -> Iterator[nn.Parameter]:
    """The convolution kernels but those of the heads, whose scale counts because no norm need follow them."""
    for name, parameter in generator.named_parameters():
        if parameter.dim() == 4 and "_head." not in name:
            yield parameter
