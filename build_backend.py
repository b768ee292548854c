"""Setuptools' build backend, with the torch that is installed already.

A build in isolation, the default of pip, sees nothing of the environment that it installs into: pip would fetch another
torch, gigabytes of it, and setup.py would decide about CUDA by that one. Where the environment has torch, it is used;
only where there is none does the build ask for one. ``pip install --no-build-isolation .`` does without all this.
"""

import sys
import sysconfig
from importlib.metadata import distributions

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks of PEP 517 and PEP 660

SITES = list(dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")))


def _torch_is_installed() -> bool:
    return any(True for _ in distributions(name="torch", path=SITES))


def _requirements() -> list[str]:
    return ["ninja>=1.11"] if _torch_is_installed() else ["ninja>=1.11", "torch>=2.10", "numpy>=1.26"]


def _use_installed_torch() -> None:
    if _torch_is_installed():
        sys.path.extend(site for site in SITES if site not in sys.path)  # last: the build's own setuptools comes first


def get_requires_for_build_wheel(config_settings=None):
    return _requirements()


def get_requires_for_build_editable(config_settings=None):
    return _requirements()


def get_requires_for_build_sdist(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    _use_installed_torch()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    _use_installed_torch()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _use_installed_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _use_installed_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
