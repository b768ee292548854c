"""Standard output and error that outlive their reader and print to any terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Within the block, losing the reader of a stream (``info | head -1``) silences it and the work goes on.

    Characters that the terminal's encoding lacks are written as backslash escapes. A stream that was closed before the
    start (``info >&-``), which Python leaves out, is one to nowhere.
    """
    with open(os.devnull, "w") as nowhere:
        yield from _tolerant(sys.stdout or nowhere, sys.stderr or nowhere)


def _tolerant(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    for stream in (stdout, stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    out, err = _Tolerant(stdout), _Tolerant(stderr)
    try:
        with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
            yield
    finally:
        out.flush()  # here, because the interpreter reports a failure of its own last flush
        err.flush()


class _Tolerant:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> None:
        """Lead the stream's file to nowhere, what it still buffers included."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
