"""A pytest plugin for GPU tests under pytest-xdist (``-p scripts.gpu_plugin -n 8 --dist loadgroup``).

An operator's tests run in one worker, other tests one function a worker. A worker whose CUDA context an illegal access
has spoilt ends, so that xdist starts a fresh one and no later test fails in its place.
"""

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group by operator, or else by function."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        part = item.callspec.params.get("op") if hasattr(item, "callspec") else None
        name = f"{item.path.stem}::{part or getattr(item, 'originalname', item.name)}"
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """End a worker with a spoilt context, after it has sent its report."""
    if "PYTEST_XDIST_WORKER" not in os.environ or not report.failed:
        return
    import torch

    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"the CUDA context is spoilt after {report.nodeid}: {error}", flush=True)
        os._exit(70)
