"""`make kill`: training runs that are killed at random moments, resumed until they end, and end as if never killed.

`python -m tests.kill_runs --kills 50 --seed 0`. A run is hit by SIGKILL (its process, or its group with the data
workers) or by SIGTERM, SIGINT or SIGHUP to the group. After each hit there is a whole checkpoint or none was due yet,
and a run that answered the signal exits with 0 and loses no update. At the end every tensor of its state and every loss
in its table is bit for bit that of a run that nothing touched. Of a run of two processes one of them is hit, and what
is left of it is ended as torchrun does.
"""

import argparse
import dataclasses
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import torch

from fastinpaint.checkpoint.training_state import load_newest_training_state, training_states
from fastinpaint.losses.objective import LossWeights
from fastinpaint.training.metrics import read_metrics
from tests.helpers.runs import become_rank, command, free_port, make_photographs, start, tiny_config

HITS = ("process", "group", signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LONGEST = 600  # seconds that a run may take before it counts as hanging
_GRACE = 30  # seconds after which torchrun kills processes that SIGTERM did not end


def run_options(folder, workers, steps):
    """Return a run with everything in it that carries state: optimizers, averages, a cache, growing crops."""
    return dataclasses.replace(
        tiny_config(folder), workers=workers, steps=steps, log_every=1, checkpoint_every=3, muon_lr=0.02, ema=0.9,
        clip=1.0, cache=True, flip=True, image_size=48, first_size=32, adversarial_start=0.3, schedule="cosine",
        losses=LossWeights(gradient_penalty=1.0), validation=str(folder / "photographs"), validate_every=7,
    )  # fmt: skip


def launch(config, log, processes=1):
    """Start a run, or resume it where there is a checkpoint; return its processes."""
    saved = training_states(Path(config.output) / "checkpoints")
    arguments = command(config, *(["--resume"] if saved else []))
    if processes == 1:
        return [start(arguments, log)]
    port = free_port()
    return [start(arguments, log, become_rank, rank, processes, port) for rank in range(processes)]


def finish(config, log, processes=1):
    """Train without being touched."""
    for process in launch(config, log, processes):
        process.join(_LONGEST)
        require(process.exitcode == 0, f"exit code {process.exitcode}", log)


def kill_and_resume(config, kills, seed, log, longest=4.0, processes=1):
    """Hit a run ``kills`` times, each time up to ``longest`` seconds after its start, and then let it end.

    Returns:
        How often each kind of hit came, and how many of them in time.
    """
    draw = random.Random(seed)
    counts = {}
    for number in range(kills + 1):
        run = launch(config, log, processes)
        process, hit = draw.choice(run), draw.choice(HITS)
        process.join(draw.uniform(0, longest) if number < kills else _LONGEST)
        in_time = process.exitcode is None
        if in_time:
            require(number < kills, "the run hangs", log)
            _hit(process.pid, hit)
            process.join(_LONGEST)
        name = hit.name if isinstance(hit, signal.Signals) else f"SIGKILL to the {hit}"
        if number < kills:
            counts[name] = counts.get(name, 0) + in_time
        others = [other for other in run if other is not process]
        if process.exitcode:
            _end(others)
        for other in others:  # the first of them may still be writing
            other.join(_LONGEST)
            require(process.exitcode or other.exitcode == 0, f"exit code {other.exitcode} of another process", log)
        _check(config, process.exitcode, hit, in_time, log)
    return counts


def _end(processes):
    """End what is left of a run whose process has failed."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_GRACE)
        process.kill()


def _hit(pid, hit):
    try:
        if hit == "process":
            os.kill(pid, signal.SIGKILL)
        elif os.getpgid(pid) == pid:  # it has a group of its own by now
            os.killpg(pid, signal.SIGKILL if hit == "group" else hit)
    except ProcessLookupError:
        pass


def _check(config, code, hit, in_time, log):
    folder = Path(config.output)
    if not in_time:
        require(code == 0, f"exit code {code}", log)
    elif isinstance(hit, signal.Signals):  # which kills a run that has not begun
        require(code in (0, -hit, 128 + hit), f"exit code {code} after {hit.name}", log)
    if training_states(folder / "checkpoints"):
        newest = load_newest_training_state(folder / "checkpoints")
        require(not newest.damaged, f"damaged: {newest.damaged}", log)
        if code == 0:
            rows = read_metrics(folder / "metrics.jsonl")
            last = rows[-1]["step"] if rows else 0  # stopped before the first update
            require(last == newest.state["step"], "updates were lost", log)


def require(condition, message, log):
    """Raise AssertionError with the end of the log."""
    if not condition:
        raise AssertionError(f"{message}\n{Path(log).read_text()[-3000:]}")


def same_end(found, wanted):
    """Raise AssertionError unless two runs ended with the same bits."""
    states = [load_newest_training_state(Path(config.output) / "checkpoints").state for config in (found, wanted)]
    tensors = [dict(_tensors("", state)) for state in states]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), name
    assert [state["step"] for state in states] == [wanted.steps] * 2
    assert states[0]["best"] == states[1]["best"]
    rows = [read_metrics(Path(config.output) / "metrics.jsonl") for config in (found, wanted)]
    clock = ("seconds", "images_per_second", "data_wait")
    plain = [[{key: row[key] for key in row if key not in clock} for row in table] for table in rows]
    assert plain[0] == plain[1]


def _tensors(name, value):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}", item)


def main():
    """Kill runs of one process, with 0 and with 2 data workers, and of two processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=25, help="of each of the three runs (default: 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--processes", type=int, choices=(1, 2), help="only runs of so many processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_photographs(folder / "photographs")
        for processes, some_workers in ((1, (0, 2)), (2, (0,))):
            if options.processes not in (None, processes):
                continue
            plain = run_options(folder, 0, options.steps)
            untouched = dataclasses.replace(plain, output=str(folder / f"untouched-{processes}"))
            finish(untouched, folder / f"untouched-{processes}.log", processes)
            for workers in some_workers:
                output = str(folder / f"killed-{processes}-{workers}")
                config = dataclasses.replace(plain, workers=workers, output=output)
                log, seed = Path(f"{output}.log"), options.seed + workers + 10 * processes
                counts = kill_and_resume(config, options.kills, seed, log, processes=processes)
                same_end(config, untouched)
                name = f"processes: {processes}, data workers: {workers}, kills: {options.kills}"
                print(f"{name} ({counts}): every bit as in the run that nothing touched", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
