"""What a request must satisfy before the application sees it, and the limits on its body."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastinpaint.serve.metrics import Metrics
from fastinpaint.serve.settings import Settings

_OPEN = ("/", "/docs", "/openapi.json", "/api/v1/health")  # what the token does not guard, with /page/...
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware: Host, Origin and token are checked, bodies are bounded in bytes and time, answers counted.

    The Host header of a server that only this machine can reach must name this machine, so that no web site can reach
    it under a name of its own (DNS rebinding). A request from a page of another origin is refused.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.settings)
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        try:
            if refusal is None:
                await self.app(scope, exchange.receive, exchange.send)
            else:
                status, reason = refusal
                headers = {"www-authenticate": "Bearer"} if status == 401 else None
                answer = JSONResponse({"detail": reason}, status, headers)
                await answer(scope, exchange.receive, exchange.send)
        except Exception:
            exchange.status = 500  # answered by what is around this
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.count_request(route, exchange.status)

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.settings.is_local and _name(host) not in _LOCAL_NAMES | {self.settings.host.lower()}:
            return 403, f"this server answers to localhost, got the Host {host[:100]!r}"
        origin = headers.get("origin")
        if origin is not None and origin.split("://")[-1].lower() != host.lower():
            return 403, f"requests of pages from {origin[:100]!r} are refused"
        guarded = path not in _OPEN and not path.startswith("/page/")
        if self.settings.token is not None and guarded:
            sent = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(sent, f"Bearer {self.settings.token}".encode()):
                return 401, "this server wants its token as 'Authorization: Bearer TOKEN'"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.settings.max_upload:
            return 413, _too_large(self.settings.max_upload)
        return None


def _name(host: str) -> str:
    """Host header without its port."""
    end = host.find("]") + 1 if host.startswith("[") else host.rfind(":")
    return (host[:end] if end > 0 else host).lower()


def _too_large(limit: int) -> str:
    return f"a request may have at most {limit} bytes"


class _Exchange:
    """A request's body on its way in, and its answer on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._receive, self._send, self._limit = receive, send, settings.max_upload
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout
        self._left = settings.max_upload
        self._complete = False
        self.status = 499  # the client left before an answer

    async def receive(self) -> Message:
        """Receive a message; once the body is there, wait without a limit for the client to leave."""
        if self._complete:
            return await self._receive()
        message = await self._piece()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, _too_large(self._limit))
        return message

    async def _piece(self) -> Message:
        try:
            left = self._deadline - asyncio.get_running_loop().time()
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except (asyncio.TimeoutError, TimeoutError):  # two classes before Python 3.11
            self._complete = True
            raise HTTPException(408, "the request did not arrive in time", {"connection": "close"}) from None
        self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message; what is left of the body is read first, or the client might never see the answer."""
        if message["type"] == "http.response.start":
            if not self._complete:
                await self._drain()
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def _drain(self) -> None:
        left = self._limit
        while not self._complete and left > 0:
            try:
                message: Any = await self._piece()
            except HTTPException:
                return
            left -= len(message.get("body", b""))
