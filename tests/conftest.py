import os
import signal

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and NumPy read it: one core for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

# fastinpaint is imported only where it is used: sanitizers load an extension of their own first, and machines that run
# the operators' tests alone may lack what the rest needs.

# Machines that run this are shared and slow at times: no per-example deadline, and the same examples every time.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")

MOST_WORKERS = 8  # a worker takes up to 2 GB
# The files that take longest. They come first, so that at the end no worker is left alone with one of them.
LONGEST = [
    "tests/test_gpu_check.py",
    "tests/test_export.py",
    "tests/test_canny_cuda.py",
    "tests/test_training.py",
    "tests/test_run_folder.py",
    "tests/test_evaluation.py",
    "tests/test_distributed.py",
    "tests/kernels/test_pooled_attention.py",
    "tests/test_canny.py",
    "tests/test_painter.py",
    "tests/kernels/test_aot.py",
    "tests/kernels/test_patch_attention.py",
    "tests/kernels/test_instance_norm.py",
    "tests/kernels/test_structure_loss.py",
    "tests/test_serve.py",
    "tests/test_cli.py",
    "tests/test_evaluation_metrics.py",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """``-n auto`` is a worker for each core that this process may use; with psutil it would count physical cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def pytest_collection_modifyitems(items):
    """Put the longest files first."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(LONGEST)))


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


@pytest.fixture
def one_thread():
    """Run with one thread, as fast as several for networks this small and the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photographs(tmp_path):
    """Three photographs in a folder, beside which ``config`` trains."""
    from tests.helpers.runs import make_photographs

    return make_photographs(tmp_path / "photographs")


@pytest.fixture
def config(photographs, tmp_path):
    """Options of a tiny training run over ``photographs``."""
    from tests.helpers.runs import tiny_config

    return tiny_config(tmp_path)


@pytest.fixture(scope="module")
def inpainter():
    """A tiny network with drawn weights."""
    from fastinpaint.inference.inpainter import Inpainter
    from fastinpaint.models.generator import InpaintGenerator

    torch.manual_seed(0)
    return Inpainter(InpaintGenerator(2, head_norm=False), device="cpu")


@pytest.fixture
def picture():
    """Noise, (37, 50, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


@pytest.fixture
def hole():
    """A box, and a corner that reaches the edges, in ``picture``."""
    hole = np.zeros((37, 50), bool)
    hole[10:25, 12:40] = True
    hole[30:, :5] = True
    return hole
