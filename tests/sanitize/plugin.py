"""pytest plugin of a sanitizer's run: the tests of the native backend, on the extension compiled for it."""

import os
import subprocess

import pytest
import torch

from tests.sanitize.extension import load


def pytest_configure(config):
    try:
        config.library = load()
    except ImportError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config):
    return [
        f"sanitizer: {os.environ['FASTINPAINT_SANITIZE']}, on {config.library}",
        f"kernels: {torch.ops.fastinpaint.cpu_isa()}, {torch.get_num_threads()} threads",
    ]


def pytest_collection_modifyitems(config, items):
    def on_reference(item):
        return hasattr(item, "callspec") and item.callspec.params.get("backend") == "reference"

    config.hook.pytest_deselected(items=list(filter(on_reference, items)))
    items[:] = [item for item in items if not on_reference(item)]


@pytest.fixture(autouse=True)
def _no_process(monkeypatch):
    """A process of a test's own loads the ordinary extension: nothing that a sanitizer could see."""

    def skip(*args, **kwargs):
        pytest.skip("starts a process")

    monkeypatch.setattr(subprocess.Popen, "__init__", skip)
