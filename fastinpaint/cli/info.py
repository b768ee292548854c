"""``fastinpaint info``."""

from __future__ import annotations

import argparse

SUMMARY = "print versions, devices and active backends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Collect and print."""
    import json

    from fastinpaint.info import collect, describe

    facts = collect()
    print(json.dumps(facts, indent=2) if options.json else describe(facts))
    return 0
