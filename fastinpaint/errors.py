"""Errors and warnings as one line for a terminal."""

from __future__ import annotations

import traceback
from itertools import dropwhile

# What is raised for users' mistakes and machines' limits; the message alone says what was wrong.
_EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)


def one_line(error: BaseException) -> str:
    """Describe an error in one line.

    Messages of the types that this package raises for wrong input stand alone. Any other type is named and followed
    by a hint to ``--debug``. Of an error that a data worker sent, only the message is kept.
    """
    message = _without_traceback(str(error))
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        message = ": ".join([*names, error.strerror])
    message = " ".join(message.split())
    if isinstance(error, _EXPECTED):
        return message or type(error).__name__
    named = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{named} (--debug shows where)"


def _without_traceback(message: str) -> str:
    """Drop the traceback that torch puts in front of the message of a worker's error."""
    _, header, rest = message.rpartition("Traceback (most recent call last):\n")
    if not header:
        return message
    after_frames = "\n".join(dropwhile(lambda line: line.startswith("  "), rest.splitlines()))
    kind, _, text = after_frames.partition(": ")
    return text or kind


def print_traceback(error: BaseException) -> None:
    """Print where an error came from on stderr."""
    traceback.print_exception(type(error), error, error.__traceback__)
