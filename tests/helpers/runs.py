"""Tiny training runs, in this process or in one of their own."""

import multiprocessing
import os
import signal
import socket
import sys

import numpy as np
import torch
from PIL import Image

from fastinpaint.cli import main
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.interrupts import STOPPING

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.helpers.runs", "fastinpaint.training.trainer"])


def make_photographs(folder, count=3):
    """Write pictures of 60 x 48 pixels; return the folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def tiny_config(folder):
    """Return options of a run over the pictures in ``folder`` / "photographs" into ``folder`` / "run"."""
    return TrainConfig(
        data=str(folder / "photographs"), output=str(folder / "run"), image_size=32, crop="random", base_channels=2,
        discriminator_channels=2, steps=6, batch_size=2, learning_rate=1e-3, workers=0, log_every=2,
        sample_every=0, checkpoint_every=0, device="cpu",
    )  # fmt: skip


def assert_equal(found, wanted):
    """Check that two states, tensors by name, are the same bit for bit."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


def command(config, *more):
    """Write the options beside the run; return the command line that trains so."""
    path = f"{config.output}-options.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(config.to_yaml())
    return ["train", "--config", path, *more]


def free_port():
    """Return a TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def become_rank(rank, count, port):
    """Describe this process in its environment as torchrun does: one of ``count`` on this machine."""
    os.environ.update(
        WORLD_SIZE=str(count), RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip


def start(arguments, log, prepare=None, *values):
    """Start the command line in a process group of its own, which a server without threads forks at once.

    Its output is appended to the file ``log``; ``prepare(*values)`` is called in the process before.
    """
    process = _SERVER.Process(target=_run, args=(arguments, str(log), prepare, values))
    process.start()
    return process


def _run(arguments, log, prepare, values):
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP):  # may be ignored where the tests are started
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # the server may have been started where they were held back
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as where no server started the process
    torch.set_num_threads(1)
    if prepare:
        prepare(*values)
    sys.exit(main(arguments))
