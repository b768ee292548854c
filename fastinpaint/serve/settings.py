"""Where the server listens, and its limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Address and limits of a server.

    Args:
        host: Address to listen on. One that other machines can reach wants a token.
        token: Secret that clients send as ``Authorization: Bearer TOKEN``; None: none is wanted.
        max_upload: Largest body of a request in bytes.
        max_pixels: Most pixels of a picture.
        queue: Requests that may wait for the model beside those that it works on; further ones are refused with 429.
        batch_size: Requests worked on at once; windows of equal size share a pass of the generator.
        timeout: Seconds that a request may wait and compute.
        body_timeout: Seconds within which a request must have arrived, its headers as well as its body.

    Raises:
        ValueError: A limit below 1, or a host that others can reach without a token.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    max_upload: int = 32 * 2**20
    max_pixels: int = 50_000_000
    queue: int = 8
    batch_size: int = 1
    timeout: float = 120.0
    body_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_upload", "max_pixels", "queue", "batch_size", "timeout", "body_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and len(self.token) >= 8):
            raise ValueError("a token wants at least 8 printable ASCII characters")
        if not self.is_local and self.token is None:
            raise ValueError(f"other machines can reach --host {self.host}: give a --token that clients must send")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the host."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False
