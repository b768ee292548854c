"""The command line: one module a command, each with ``SUMMARY``, ``add_arguments`` and ``run``.

What a command needs is imported only when it runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import fastinpaint
from fastinpaint.cli import convert, demo, evaluate, export, info, inpaint, masks, serve, train, tune
from fastinpaint.cli.streams import tolerant_streams
from fastinpaint.errors import one_line, print_traceback

COMMANDS = {
    "demo": demo,
    "train": train,
    "inpaint": inpaint,
    "serve": serve,
    "evaluate": evaluate,
    "export": export,
    "convert": convert,
    "masks": masks,
    "tune": tune,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 on failure (told in one line on stderr; ``--debug`` adds the traceback), 130 after Ctrl-C, 143
        after SIGTERM, 129 after SIGHUP. Wrong arguments exit with 2.
    """
    arguments = _hyphened(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    with tolerant_streams(), _short_warnings(), _signals_unwind():
        options = _parser(chosen).parse_args(arguments)
        try:
            return COMMANDS[options.command].run(options)
        except KeyboardInterrupt:
            print("fastinpaint: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if options.debug:
                print_traceback(error)
            print(f"fastinpaint: error: {one_line(error)}", file=sys.stderr)
            return 1


def _hyphened(arguments: Sequence[str]) -> list[str]:
    """Spell the names of options with hyphens: ``--mask_dilate`` is taken as ``--mask-dilate``."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)

    def spelled(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("_", "-") + equals + value if name.startswith("--") else word

    return [*map(spelled, arguments[:end]), *arguments[end:]]


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage, which ``--help`` prints."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="fastinpaint", description="Structure-aware image inpainting.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fastinpaint {fastinpaint.__version__}")
    debug = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", help=debug)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY, allow_abbrev=False)
        if name == chosen:
            command.add_arguments(sub)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=debug)
    return parser


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings in one line without the place in the code."""
    previous = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"fastinpaint: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = previous


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """End by an exception on SIGTERM and SIGHUP (a lost terminal), so that half-written files are removed.

    A signal that is ignored stays ignored (``nohup``). Training sets handlers of its own.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {}
    if threading.current_thread() is threading.main_thread():  # Python handles signals there alone
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
