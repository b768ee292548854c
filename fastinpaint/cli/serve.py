"""``fastinpaint serve``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from fastinpaint.cli.arguments import add_device, add_model, add_precision
from fastinpaint.extras import extra

if TYPE_CHECKING:
    from fastinpaint.serve.server import Server

SUMMARY = "remove things from photographs in a browser, or over HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser)
    add_device(parser)
    add_precision(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free (default: 7860)")
    parser.add_argument(
        "--token", default=os.environ.get("FASTINPAINT_TOKEN") or None,
        help="secret that clients must send, needed where other machines reach --host (default: $FASTINPAINT_TOKEN)",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-upload", type=float, default=32, help="MiB of a request (default: 32)")
    limits.add_argument("--max-pixels", type=float, default=50, help="million pixels of a picture (default: 50)")
    limits.add_argument("--queue", type=int, default=8, help="requests that may wait; others get 429 (default: 8)")
    limits.add_argument("--timeout", type=float, default=120, help="seconds for a request (default: 120)")
    limits.add_argument(
        "--batch-size", type=int, default=1,
        help="requests that may share a pass of the model; above 1 the last bit of a pixel may differ (default: 1)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    with extra("serve", "serve"):
        from fastinpaint.serve.server import Server
    from fastinpaint.inference.inpainter import Inpainter
    from fastinpaint.serve.settings import Settings

    settings = Settings(
        host=options.host, token=options.token, max_upload=int(options.max_upload * 2**20),
        max_pixels=int(options.max_pixels * 1e6), queue=options.queue, batch_size=options.batch_size,
        timeout=options.timeout,
    )  # fmt: skip
    inpainter = Inpainter.from_pretrained(options.model, options.device, precision=options.precision)
    server: Server = Server(inpainter, settings, options.port)
    print(f"fastinpaint: {server.address}", file=sys.stderr)
    server.run(open_browser=not options.no_browser)
    return 0
