"""The painter's application under uvicorn."""

from __future__ import annotations

import asyncio
import socket
import threading
import webbrowser
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.serve.app import create_app
from fastinpaint.serve.settings import Settings

_CONNECTIONS = 256  # further ones get 503


class Server:
    """Listens from the start; serves when run.

    Args:
        inpainter: Fills the pictures.
        settings: Address and limits.
        port: TCP port; 0 takes any that is free.

    Raises:
        OSError: The address cannot be listened on.
    """

    def __init__(self, inpainter: Inpainter, settings: Settings, port: int) -> None:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.create_server((settings.host, port), family=family, backlog=128)
        port = self._socket.getsockname()[1]
        host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
        fragment = f"#token={settings.token}" if settings.token else ""
        self.address = f"http://{host}:{port}/{fragment}"
        self.app = create_app(inpainter, settings)
        config = uvicorn.Config(
            self.app, http=_protocol(settings.body_timeout), ws="none", log_level="warning",
            server_header=False, limit_concurrency=_CONNECTIONS, proxy_headers=False,
            timeout_graceful_shutdown=round(settings.timeout) + 1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    def run(self, open_browser: bool) -> None:
        """Serve until SIGINT or SIGTERM; requests in progress are finished first."""
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(self.address,), daemon=True).start()
        with self._socket:
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Stop serving, as on SIGTERM; from any thread."""
        self._server.should_exit = True


def _protocol(header_timeout: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, closing connections whose first request does not arrive in time."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._first_request = self.loop.call_later(header_timeout, self._close_if_silent)

        def _close_if_silent(self) -> None:
            if self.cycle is None:  # no request so far
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._first_request.cancel()
            super().connection_lost(exc)

    return Protocol
