"""`make soak`: many clients at once against `fastinpaint serve`; nothing fails, and memory stays where it was.

`python -m tests.helpers.painter_soak --requests 1000 --clients 4` ends after so many answers in place of a time, and
`--model small` takes the model that ships in place of a tiny one with random weights.
"""

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
    parser.add_argument("--requests", type=int, help="end after so many answers, whatever time they take")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--model", help="folder, or the name of a model that ships (default: tiny, random weights)")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            InpaintGenerator(4, head_norm=False).save_pretrained(folder)
        command = [sys.executable, "-m", "fastinpaint", "serve", "--no-browser", "--port", "0"]
        command += ["--model", options.model or folder]
        process = subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True)
        soak = Soak(process.stderr.readline().split()[-1].rstrip("/"), pause=5)
        memory = []  # bytes, from the 50th answer on

        def over():
            if options.requests is not None:
                return soak.answers.total() >= options.requests
            return time.monotonic() >= end

        def watch():
            shown = time.monotonic()
            while not over() and process.poll() is None:
                time.sleep(0.05)
                if soak.answers.total() >= 50:
                    memory.append(resident_memory(process.pid))
                if time.monotonic() >= shown:
                    shown += 10
                    print(f"{dict(soak.answers)} {resident_memory(process.pid) / 2**20:.0f} MiB", flush=True)

        end = time.monotonic() + options.seconds
        soak.run(options.clients, watch=watch)
        late = 0 if process.poll() is not None else resident_memory(process.pid)
        process.terminate()
        process.wait(60)
    if not late:
        sys.exit(f"the server ended with exit status {process.returncode}")
    if not memory:
        sys.exit("fewer than 50 answers: too little time")
    failed = sum(count for status, count in soak.answers.items() if isinstance(status, int) and status >= 500)
    early, most = memory[0], max(memory)
    print(
        f"{soak.answers.total()} answers, server errors: {failed}; memory after 50 answers {early / 2**20:.0f} MiB, "
        f"at most {most / 2**20:.0f} MiB, at the end {late / 2**20:.0f} MiB ({late / early - 1:+.1%})"
    )
    return 0 if not failed and late <= 1.1 * early else 1


if __name__ == "__main__":
    sys.exit(main())
