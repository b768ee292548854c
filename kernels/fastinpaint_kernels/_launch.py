"""What every launcher needs: the device of its tensors, and tuning."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

Blocks = Mapping[str, int]


def cdiv(number: int, size: int) -> int:
    """How many pieces of ``size`` hold ``number``. On the host ``triton.cdiv`` takes microseconds a call."""
    return -(-number // size)


def next_power_of_2(number: int) -> int:
    """The least power of two that is at least ``number``, which is at least 1."""
    return 1 << (number - 1).bit_length()


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU current: Triton launches on the current device and its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def programs_bucket(programs: int, tensor: Tensor) -> int:
    """0, 1 or 2: programs that leave multiprocessors idle, that fill them less than four times, or more often."""
    multiprocessors = _multiprocessors(tensor.device)
    return 0 if programs <= multiprocessors else 1 if programs <= 4 * multiprocessors else 2


def _untuned() -> bool:
    """Whether FASTINPAINT_TUNE=0 asks for first configurations: tuning compiles and times each for every new size."""
    return os.environ.get("FASTINPAINT_TUNE", "1") == "0"


class Choice(NamedTuple):
    """What tuning chose for one problem of a kernel.

    Args:
        kernel: Its name.
        problem: Family, values of the tuning key by name, dtypes of the tensors.
        configuration: As Triton writes it.
        seconds: Of a launch, the median; None where there was one configuration and nothing to measure.
        first: The same of the first configuration, which is what an untuned launch takes.
    """

    kernel: str
    problem: str
    configuration: str
    seconds: float | None
    first: float | None


class TunedFamilies:
    """A kernel with several families of configurations, tuned within the one that suits its arguments.

    Each family has a tuner of its own: one with a single configuration never measures anything (Triton 3.6 would, were
    it told to prune a longer list). While a CUDA graph is captured nothing can be measured: what has not been tuned
    before takes the first configuration of its family.
    """

    def __init__(
        self,
        kernel: Any,
        families: Mapping[str, Sequence[triton.Config]],
        family: Callable[[Mapping[str, Any]], str],
        key: Sequence[str],
    ) -> None:
        self.kernel = kernel
        self.names = kernel.arg_names
        self.family = family
        self.key = tuple(key)
        self.key_places = [self.names.index(name) for name in key]
        self.tuners = {
            name: triton.autotune(configs=list(configs), key=list(key), cache_results=True)(kernel)
            for name, configs in families.items()
        }
        self.chosen: dict[tuple[Any, ...], dict[str, Any]] = {}  # the options of a launch, by problem
        self.choices: list[Choice] = []

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """The launcher for a grid; all arguments are positional."""
        return lambda *arguments: self._launch(grid, arguments)

    def _launch(self, grid: Any, arguments: tuple[Any, ...]) -> Any:
        values = [arguments[place] for place in self.key_places]
        dtypes = [argument.dtype for argument in arguments if isinstance(argument, Tensor)]
        problem = (*values, *dtypes)
        options = self.chosen.get(problem)
        if options is None:
            name = self.family(dict(zip(self.names, arguments, strict=False)))
            tuner = self.tuners[name]
            options = tuner.configs[0].all_kwargs()
            if len(tuner.configs) == 1:
                self._note(problem, name, tuner.configs[0], {})
            elif not (_untuned() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())):
                result = tuner[grid](*arguments)
                self._note(problem, name, tuner.best_config, tuner.configs_timings)
                return result
        return self.kernel[grid](*arguments, **options)

    def _note(
        self, problem: tuple[Any, ...], name: str, config: triton.Config, timings: Mapping[triton.Config, Any]
    ) -> None:
        """Remember a choice; Triton's timings are milliseconds, the median first."""
        self.chosen[problem] = config.all_kwargs()
        values, dtypes = problem[: len(self.key)], problem[len(self.key) :]
        parts = [name, *(f"{key} {value}" for key, value in zip(self.key, values, strict=True))]
        parts += dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes)
        medians = {c: (t[0] if isinstance(t, Sequence) else t) / 1e3 for c, t in timings.items()}
        first = medians.get(self.tuners[name].configs[0])
        self.choices.append(Choice(self.kernel.__name__, ", ".join(parts), str(config), medians.get(config), first))


_TUNED: list[TunedFamilies] = []


def choices() -> list[Choice]:
    """What this process has chosen so far, kernel by kernel; measured now, or found in Triton's cache."""
    return [choice for kernel in _TUNED for choice in kernel.choices]


def autotune(
    families: Mapping[str, Sequence[triton.Config]], family: Callable[[Mapping[str, Any]], str], key: Sequence[str]
) -> Callable[[Any], TunedFamilies]:
    """``triton.autotune`` among one family of configurations, its choice remembered on disk.

    Args:
        families: Name to configurations, the likely best first: it is taken where nothing can be measured, and in
            Triton's interpreter.
        family: From the kernel's arguments to the name of the family that suits them, which the values of ``key`` and
            the dtypes of the tensors determine.
        key: Arguments that ask for a tuning of their own.
    """
    if triton.knobs.runtime.interpret:
        families = {name: configs[:1] for name, configs in families.items()}

    def decorate(kernel: Any) -> TunedFamilies:
        _TUNED.append(TunedFamilies(kernel, families, family, key))
        return _TUNED[-1]

    return decorate
