"""Dependencies that not everyone needs: what is missing is named together with the extra that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, purpose: str = "") -> Iterator[None]:
    """Import optional packages inside the block.

    Args:
        name: The extra of ``fastinpaint`` in pyproject.toml that installs them.
        purpose: What needs them, where a message can say more than that they are missing.

    Raises:
        ImportError: One is not installed; the message names the package and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = f"{purpose} needs {error.name}" if purpose else f"{error.name} is not installed"
        message = f"{missing}: pip install 'fastinpaint[{name}]'"
        if name == "opencv":
            message += "; opencv-python and opencv-contrib-python serve as well"
        raise ModuleNotFoundError(message, name=error.name) from error
