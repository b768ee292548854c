"""`make soak`: many clients at once against `fastinpaint serve`; nothing fails, and memory stays where it was."""

import argparse
import io
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

import httpx
import numpy as np
import torch
from PIL import Image

from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.serve.metrics import resident_memory

SIDES = (48, 64, 96, 160, 300)


def photo(numbers, side):
    """A random picture and a box in it, as files."""
    pixels = np.frombuffer(numbers.randbytes(side * side * 3), np.uint8).reshape(side, side, 3)
    hole = np.zeros((side, side), np.uint8)
    top, left = numbers.randrange(side // 2), numbers.randrange(side // 2)
    hole[top : top + side // 4, left : left + side // 4] = 255
    found = {}
    for name, array in (("image", pixels), ("mask", hole)):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG", compress_level=1)
        found[name] = (name, file.getvalue())
    return found


class Soak:
    """Clients that send pictures, broken pictures, and sometimes leave before the answer."""

    def __init__(self, address, pause=0.2):
        self.pause = pause  # seconds, at most, after an answer of 429
        self.photos = [photo(random.Random(side), side) for side in SIDES]
        self.address, self.answers, self.stop = address, Counter(), threading.Event()
        self._lock = threading.Lock()

    def client(self, seed, requests=None):
        """Send until stopped, or so many requests."""
        numbers = random.Random(seed)
        with httpx.Client(timeout=300) as session:
            count = 0
            while not self.stop.is_set() and count != requests:
                answer = self.send(session, numbers)
                with self._lock:
                    self.answers[answer] += 1
                count += 1

    def send(self, session, numbers):
        files = dict(numbers.choice(self.photos))
        kind = numbers.random()
        if kind < 0.05:
            files["image"] = ("image", files["image"][1][:-40])
        try:
            timeout = 0.01 if kind > 0.95 else None
            options = {} if timeout is None else {"timeout": timeout}
            status = session.post(f"{self.address}/api/v1/inpaint", files=files, **options).status_code
        except httpx.TimeoutException:
            return "left"
        if status == 429:
            self.stop.wait(self.pause * numbers.random())
        return status

    def run(self, clients, requests=None, watch=None):
        """Let the clients run; ``watch`` is called meanwhile and ends it by returning."""
        threads = [threading.Thread(target=self.client, args=(seed, requests)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        if watch is not None:
            watch()
            self.stop.set()
        for thread in threads:
            thread.join()
        return self.answers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        InpaintGenerator(4, head_norm=False).save_pretrained(folder)
        command = [sys.executable, "-m", "fastinpaint", "serve", "--no-browser", "--port", "0", "--model", folder]
        process = subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True)
        soak = Soak(process.stderr.readline().split()[-1].rstrip("/"), pause=5)
        early = []

        def watch():
            end = time.monotonic() + options.seconds
            while time.monotonic() < end:
                time.sleep(1)
                if not early and soak.answers[200] >= 50:
                    early.append(resident_memory(process.pid))
                print(f"{dict(soak.answers)} {resident_memory(process.pid) / 2**20:.0f} MiB", flush=True)

        soak.run(options.clients, watch=watch)
        late = resident_memory(process.pid)
        process.terminate()
        process.wait(60)
    if not early:
        sys.exit("fewer than 50 fills: too little time")
    failed = sum(count for status, count in soak.answers.items() if isinstance(status, int) and status >= 500)
    print(
        f"server errors: {failed}; memory after 50 fills {early[0] / 2**20:.0f} MiB, at the end {late / 2**20:.0f} MiB"
    )
    return 0 if not failed and late <= 1.1 * early[0] else 1


if __name__ == "__main__":
    sys.exit(main())
