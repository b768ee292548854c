import subprocess
import sys
import warnings

import pytest
import torch

from fastinpaint.ops import _backend


@pytest.fixture(autouse=True)
def _no_default(monkeypatch):
    monkeypatch.delenv("FASTINPAINT_BACKEND", raising=False)
    _backend._announce.cache_clear()


def test_auto_takes_the_best_that_can_serve():
    assert _backend.select("op", "auto", {"native": None, "reference": None}) == "native"


def test_auto_says_once_what_it_passed_over():
    candidates = {"native": "not built", "reference": None}
    with pytest.warns(RuntimeWarning, match=r"fastinpaint\.op runs on its reference backend \(native: not built\)"):
        assert _backend.select("op", "auto", candidates) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backend.select("op", "auto", candidates) == "reference"


def test_named_backend_never_falls_back():
    candidates = {"triton": "no CUDA device", "native": "not built", "reference": None}
    with pytest.raises(ValueError, match=r"'native' cannot serve.*native: not built; triton: no CUDA device"):
        _backend.select("op", "native", candidates)


def test_backend_that_the_op_lacks():
    with pytest.raises(ValueError, match="op has no such backend"):
        _backend.select("op", "triton", {"reference": None})


def test_unknown_backend_names_the_choices():
    with pytest.raises(ValueError, match=r"backend must be one of auto, triton, native, reference, got 'cuda'"):
        _backend.select("op", "cuda", {"reference": None})


def test_environment_sets_the_default(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "reference")
    assert _backend.select("op", "auto", {"native": None, "reference": None}) == "reference"
    assert _backend.select("op", "native", {"native": None, "reference": None}) == "native"


def test_an_empty_environment_variable_is_none(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "")
    assert _backend.select("op", "auto", {"native": None, "reference": None}) == "native"


def test_environment_default_may_fall_back(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "triton")
    with pytest.warns(RuntimeWarning, match="triton: op has no such backend"):
        assert _backend.select("op", "auto", {"native": None, "reference": None}) == "native"


def test_environment_typo_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"FASTINPAINT_BACKEND must be one of .* got 'fast'"):
        _backend.select("op", "auto", {"reference": None})


def test_an_older_extension_lacks_an_operator_and_says_so():
    assert not _backend.has_native("operator_of_tomorrow")
    reason = _backend.native_reason("operator_of_tomorrow", torch.empty(1))
    assert reason is not None
    assert "has no operator_of_tomorrow" in reason or "not built" in reason


def test_native_reason_names_the_device():
    reason = _backend.native_reason("canny", torch.empty(1, device="meta"))
    assert reason is not None
    assert "meta" in reason or "not built" in reason


def test_triton_reason_names_the_device():
    assert _backend.triton_reason(torch.empty(1)) == "it needs CUDA tensors, got cpu tensors"
    mixed = _backend.triton_reason(torch.empty(1), torch.empty(1, device="meta"))
    assert mixed == "tensors lie on different devices"


def test_triton_comes_first_on_a_gpu_and_last_elsewhere():
    gaps = {"triton": None, "native": None}
    assert list(_backend.ranked(torch.device("cuda"), **gaps)) == ["triton", "native", "reference"]
    assert list(_backend.ranked(torch.device("cpu"), **gaps)) == ["native", "reference", "triton"]


def test_importing_the_package_loads_no_kernel():
    code = (
        "import sys, fastinpaint; "
        "loaded = {'torch', 'triton', 'cv2', 'fastinpaint._C', 'fastinpaint_kernels'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
