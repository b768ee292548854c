import json

import pytest
import torch

from fastinpaint import info
from fastinpaint.cli import main
from fastinpaint.ops import _backend


@pytest.fixture(scope="module")
def facts():
    return info.collect()


def test_versions_and_devices(facts):
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "cpu" in facts["devices"]


def test_every_operator_has_its_reference_and_a_reason_for_the_rest(facts):
    names = {name.split()[0] for name in facts["operators"]}
    assert names == {
        "canny", "sobel_edges", "edge_priority", "structure_loss", "pooled_attention", "patch_attention",
        "instance_norm", "conv2d",
    }  # fmt: skip
    for backends in facts["operators"].values():
        assert list(backends) == ["triton", "native", "reference"]
        assert backends["reference"] is None
        assert all(reason is None or reason for reason in backends.values())


def test_canny_runs_natively_where_the_extension_is_built(facts):
    reason = facts["operators"]["canny (cpu)"]["native"]
    assert (reason is None) == (_backend.NATIVE_ERROR is None)
    assert reason is None or reason == _backend.NATIVE_ERROR


def test_text_names_what_serves_and_why_not_the_others(facts):
    text = info.describe({"operators": {"canny (cpu)": {"triton": "no CUDA device", "native": None}}})
    assert text.splitlines()[1].split() == ["canny", "(cpu)", "native"]
    assert "not triton: no CUDA device" in text
    assert "fastinpaint" in info.describe(facts)


def test_what_is_broken_is_described(monkeypatch):
    monkeypatch.setattr(info, "_devices", lambda: 1 / 0)
    monkeypatch.setitem(info.PACKAGES, "absent", ("a-package-that-is-not-there",))
    monkeypatch.setitem(info.PACKAGES, "present", ("a-package-that-is-not-there", "torch"))
    facts = info.collect()
    assert "ZeroDivisionError" in facts["devices"]["error"]
    assert facts["versions"]["absent"] == "not installed"
    assert facts["versions"]["present"] == facts["versions"]["torch"]
    assert "ZeroDivisionError" in info.describe(facts)


def test_json(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"versions", "devices", "extension", "operators"}
