"""CRC-32C as LevelDB and TensorFlow store it."""

from __future__ import annotations

from fastinpaint.extras import extra


def masked_crc32c(data: bytes) -> int:
    """Return the CRC rotated right by 15, plus a constant.

    Raises:
        ImportError: google-crc32c is not installed.
    """
    with extra("convert", "reading TensorFlow checkpoints"):
        from google_crc32c import value
    crc = int(value(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
