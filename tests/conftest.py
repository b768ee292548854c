import os
import signal

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

# Machines that run this are shared and slow at times: no per-example deadline, and the same examples every time.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


def pytest_configure(config):
    """FASTINPAINT_REQUIRE_NATIVE=1: without the compiled extension the suite fails; else tests that need it skip."""
    if os.environ.get("FASTINPAINT_REQUIRE_NATIVE") != "1":
        return
    from fastinpaint.ops._backend import NATIVE_ERROR

    if NATIVE_ERROR is not None:
        raise pytest.UsageError(f"FASTINPAINT_REQUIRE_NATIVE=1, but {NATIVE_ERROR}")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _default_signals():
    """Undo what background jobs inherit: in them SIGINT, and under nohup SIGHUP, is ignored."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture
def poisoned_memory():
    """Fill fresh allocations with NaN, so that an element which no kernel wrote cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cuda():
    """The device of GPU tests; skips with the reason where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch sees none")
    return torch.device("cuda")
