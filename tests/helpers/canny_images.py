"""Images for Canny: patterns with and without ties, and edges that only a long walk can find."""

import numpy as np


def pattern(kind, height, width, seed=0):
    """A grey image in [0, 1] of one kind, (height, width) float32."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((height, width))
    image = {
        "noise": lambda: rng.random((height, width)),
        "sparse noise": lambda: rng.random((height, width)) > 0.97,
        "flat": lambda: np.full((height, width), 0.7),
        "zero": lambda: np.zeros((height, width)),
        "pixel": lambda: (y == height // 2) & (x == width // 2),
        "corner": lambda: (y == 0) & (x == width - 1),
        "checkerboard": lambda: (y + x) % 2,
        "coarse checkerboard": lambda: (y // 7 + x // 7) % 2,
        "blocks": lambda: np.kron(rng.random((-(-height // 8), -(-width // 8))), np.ones((8, 8)))[:height, :width],
        "ramp": lambda: (y + 2 * x) / (height + 2 * width),
        "steep ramp": lambda: 10.0 * y,
        "step": lambda: x >= width // 2,
        "diagonal": lambda: x > y,
        "disc": lambda: np.hypot(y - height / 2, x - width / 2) < min(height, width) / 3,
        "stripes": lambda: np.sin(x / 3) * 0.5 + 0.5,
        "levels": lambda: rng.integers(0, 3, (height, width)) / 2,
    }[kind]()
    return image.astype(np.float32)


PATTERNS = (
    "noise",
    "sparse noise",
    "flat",
    "zero",
    "pixel",
    "corner",
    "checkerboard",
    "coarse checkerboard",
    "blocks",
    "ramp",
    "steep ramp",
    "step",
    "diagonal",
    "disc",
    "stripes",
    "levels",
)

FAINT = 0.06  # of a line: its gradient is weak for the thresholds 0.1 and 2


def spiral(size):
    """A faint line winding inwards with one bright end outside, (size, size)."""
    line = np.zeros((size, size), dtype=bool)
    y, x, dy, dx, length, turns = size - 3, 2, 0, 1, size - 5, 0
    while length > 2:
        for _ in range(length):
            line[y, x] = True
            y, x = y + dy, x + dx
        dy, dx, turns = -dx, dy, turns + 1
        length -= 4 if turns % 2 == 1 and turns > 1 else 0
    image = np.where(line, np.float32(FAINT), np.float32(0))
    image[size - 3, 2:6] = 1.0
    return image


def serpentine(height, width, step=5):
    """A faint line to and fro through the whole image with one bright end at the top left."""
    image = np.zeros((height, width), dtype=np.float32)
    rows = range(3, height - 3, step)
    for index, y in enumerate(rows):
        image[y, 3 : width - 3] = FAINT
        if index + 1 < len(rows):
            image[y : y + step, width - 4 if index % 2 == 0 else 3] = FAINT
    image[3, 3:7] = 1.0
    return image


def comb(height, width, across, step=6):
    """Faint teeth that leave a back along the top (or the left) for the other end, the back's corner bright."""
    if not across:
        return comb(width, height, True, step).T.copy()
    image = np.zeros((height, width), dtype=np.float32)
    image[3, 3 : width - 3] = FAINT
    image[3 : height - 3, 3 : width - 3 : step] = FAINT
    image[3, 3:7] = 1.0
    return image
