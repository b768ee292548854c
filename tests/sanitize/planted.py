"""Make one error on purpose: ``python -m tests.sanitize.planted NAME``."""

import ctypes
import sys

# What a report of it says, by sanitizer and by name in planted.cpp.
ERRORS = {
    "address": {
        "read_before": "heap-buffer-overflow",
        "read_past": "heap-buffer-overflow",
        "read_vector_past": "heap-buffer-overflow",
        "write_past": "heap-buffer-overflow",
        "read_past_scratch": "heap-buffer-overflow",
        "read_stale_scratch": "heap-use-after-free",
        "index_past_vector": "__n < this->size()",
        "overflow": "signed integer overflow",
        "shift_by_width": "shift exponent",
        "misaligned": "misaligned address",
        "cast_out_of_range": "outside the range of representable values",
    },
    "thread": {"race": "data race"},
}


def main() -> None:
    """Call it on the memory of a tensor of 13 elements, which end inside a cache line and a vector."""
    import torch

    from tests.sanitize.extension import load

    values = torch.zeros(13)
    error = getattr(ctypes.CDLL(str(load())), sys.argv[1])
    error.restype = ctypes.c_float
    error(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(len(values)))


if __name__ == "__main__":
    main()
