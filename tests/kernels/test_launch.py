import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.autotuner import Autotuner

from fastinpaint_kernels._launch import TunedFamilies


@triton.jit
def _which(p_out, size, BLOCK: tl.constexpr):
    tl.store(p_out + tl.arange(0, BLOCK), BLOCK + tl.zeros((BLOCK,), tl.int32))


def _configuration(kernel, size=1):
    """The BLOCK that a launch took."""
    out = torch.zeros(8, dtype=torch.int32)
    kernel[lambda meta: (1,)](out, size)
    return out[0].item()


@pytest.fixture
def measured(monkeypatch):
    """Sizes that were tuned for; BLOCK = 4 always wins."""
    sizes = []

    def bench(self, *args, config, **_):
        sizes.append(args[1])
        return [float(config.kwargs["BLOCK"] != 4)] * 3

    monkeypatch.setattr(Autotuner, "_bench", bench)
    monkeypatch.setattr(Autotuner, "check_disk_cache", lambda self, key, configs, bench_all: bench_all() or False)
    return sizes


def _capture(monkeypatch, capturing):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)


@pytest.fixture
def kernel():
    configurations = [triton.Config({"BLOCK": block}) for block in (2, 4, 8)]
    families = {"one": configurations, "other": [triton.Config({"BLOCK": 8})]}
    return TunedFamilies(_which, families, lambda named: "other" if named["size"] == 7 else "one", ["size"])


def test_tunes_once_for_each_key(kernel, measured):
    assert [_configuration(kernel, size) for size in (1, 1, 2, 7)] == [4, 4, 4, 8]
    assert measured == [1, 1, 1, 2, 2, 2]


def test_an_untuned_kernel_in_a_capture_takes_its_first_configuration(kernel, measured, monkeypatch):
    _capture(monkeypatch, True)
    assert _configuration(kernel) == 2
    assert not measured
    _capture(monkeypatch, False)
    assert _configuration(kernel) == 4  # the capture has not decided for later launches
    _capture(monkeypatch, True)
    assert _configuration(kernel) == 4
    assert _configuration(kernel, 2) == 2


def test_choices_are_told_with_their_times(kernel, measured):
    for size in (1, 1, 7):
        _configuration(kernel, size)
    tuned, alone = kernel.choices
    assert tuned.kernel == alone.kernel == "_which"
    assert (tuned.problem, alone.problem) == ("one, size 1, int32", "other, size 7, int32")
    assert tuned.configuration.startswith("BLOCK: 4, num_warps: 4")
    assert alone.configuration.startswith("BLOCK: 8, num_warps: 4")
    assert (tuned.seconds, tuned.first) == (0.0, 1e-3)
    assert (alone.seconds, alone.first) == (None, None)


def test_untuned_launches_are_not_choices(kernel, measured, monkeypatch):
    monkeypatch.setenv("FASTINPAINT_TUNE", "0")
    assert _configuration(kernel) == 2
    assert not measured
    assert not kernel.choices


def test_a_choice_on_disk_is_not_measured_again(kernel, measured, monkeypatch):
    def found(self, key, configs, bench_all):
        self.configs_timings = {config: [float(config.kwargs["BLOCK"] != 2)] * 3 for config in configs}
        self.cache[key] = configs[0]
        return True

    monkeypatch.setattr(Autotuner, "check_disk_cache", found)
    kernel.tuners["one"].cache_results = True  # off in the interpreter
    assert _configuration(kernel) == 2
    assert not measured
    assert kernel.choices[0].seconds == 0.0
