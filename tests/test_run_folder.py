"""A run's folder: what survives damage, a full disk, signals and a second run, and what a resumed run takes over."""

import dataclasses
import errno
import json
import logging
import os
import resource
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fastinpaint.checkpoint.training_state import (
    load_newest_training_state,
    load_training_state,
    save_training_state,
    training_state_path,
    training_states,
)
from fastinpaint.cli import main
from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.files import atomic_write
from fastinpaint.losses.objective import LossWeights
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.interrupts import StopRequest, blocked_signals, prepare_worker
from fastinpaint.training.metrics import MetricsLog, read_metrics
from fastinpaint.training.run_folder import RunFolder
from fastinpaint.training.sampler import SampleStream
from fastinpaint.training.train_step import TrainStep
from fastinpaint.training.trainer import Trainer
from tests.helpers.runs import assert_equal, command, start
from tests.kill_runs import finish, kill_and_resume, run_options, same_end

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def in_another_process(call):
    """Fork, call, and return the exit code: what the call returned, or 99 after an exception."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = call() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class TestDamage:
    @pytest.mark.parametrize("damage", ["truncated", "zeroed", "flipped", "stray"])
    def test_the_checkpoint_before_a_damaged_one_is_used(self, config, damage, caplog):
        Trainer(dataclasses.replace(config, steps=4, checkpoint_every=2)).run()
        older, newest = training_states(Path(config.output) / "checkpoints")
        content = bytearray(newest.read_bytes())
        if damage == "stray":
            newest = newest.with_name("step-99999999.pt")
            content = b""
        elif damage == "truncated":
            content = content[: len(content) // 2]
        elif damage == "zeroed":
            content = bytes(len(content))
        else:
            content[len(content) // 2] ^= 4
        newest.write_bytes(content)
        resumed = Trainer(dataclasses.replace(config, keep_checkpoints=1, checkpoint_every=2), resume=True)
        assert resumed.step == (4 if damage == "stray" else 2)
        assert str(newest) in caplog.text
        resumed.run()
        left = training_states(older.parent)
        assert [path.name for path in left] == ["step-00000006.pt"]
        assert newest.with_name(newest.name + ".damaged").read_bytes() == content

    def test_only_damaged_checkpoints_are_an_error_that_names_them(self, config, capsys):
        Trainer(dataclasses.replace(config, steps=1)).run()
        (only,) = training_states(Path(config.output) / "checkpoints")
        only.write_bytes(b"")
        assert main(command(config, "--resume")) == 1
        assert capsys.readouterr().err.splitlines()[-1].endswith("is whole: step-00000001.pt")

    def test_no_flipped_bit_passes_unnoticed(self, tmp_path):
        path = training_state_path(tmp_path, 1)
        save_training_state(path, {"model": {"w": torch.arange(40.0)}, "step": 1})
        content = path.read_bytes()
        generator = torch.Generator().manual_seed(1)
        for _ in range(300):
            place, bit = (int(torch.randint(n, (), generator=generator)) for n in (len(content), 8))
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                state = load_training_state(path)
            except ValueError:
                continue
            assert torch.equal(state["model"]["w"], torch.arange(40.0))
            assert state["step"] == 1

    @pytest.mark.parametrize("garbage", [b"\0" * 500, b'{"step": 4, "to', b"[1]\n", b'{"total": 1}\n', b"\xff\xfe\n"])
    def test_a_damaged_table_is_repaired_and_named(self, tmp_path, garbage, caplog):
        path = tmp_path / "metrics.jsonl"
        rows = [{"step": step, "total": 0.5} for step in (1, 2, 3)]
        lines = [json.dumps(row).encode() + b"\n" for row in rows]
        path.write_bytes(lines[0] + garbage.rstrip(b"\n") + b"\n" + lines[1] + garbage)
        log = MetricsLog(path, 2)
        assert f"{path}: 2 damaged lines" in caplog.text
        log.write(rows[2])
        assert path.read_bytes() == b"".join(lines)

    def test_a_whole_last_line_counts(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n{"step": 2}')
        assert [row["step"] for row in read_metrics(path)] == [1, 2]

    def test_what_killed_runs_left_is_removed(self, config):
        Trainer(dataclasses.replace(config, steps=1)).run()
        output = Path(config.output)
        left = [output / "decoded.u8", output / "notes.txt"]
        for folder in (output, output / "checkpoints", output / "model"):
            with atomic_write(folder / "x.pt") as temporary:
                left.insert(0, temporary)
                temporary.touch()
        for path in left:
            path.write_bytes(b"half")
        Trainer(config, resume=True)
        assert [path.exists() for path in left] == [False, False, False, False, True]


class TestFullDisk:
    @contextmanager
    def largest_file(self, size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_one_line_and_the_previous_checkpoint(self, config, capsys):
        Trainer(dataclasses.replace(config, steps=2)).run()
        (good,) = training_states(Path(config.output) / "checkpoints")
        content = good.read_bytes()
        with self.largest_file(len(content) - 1):
            assert main(command(config, "--resume")) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("fastinpaint: error: ")
        assert "no space left for the run" in error
        assert error.endswith(f"the last checkpoint is {good}")
        assert os.listdir(good.parent) == [good.name]
        assert good.read_bytes() == content
        assert main(command(config, "--resume")) == 0
        assert load_newest_training_state(good.parent).state["step"] == 6

    def test_a_disk_that_fills_up_while_metrics_are_written(self, config, monkeypatch):
        def full(log, row):
            raise OSError(errno.ENOSPC, "No space left on device")

        trainer = Trainer(config)
        monkeypatch.setattr(MetricsLog, "write", full)
        with pytest.raises(OSError, match=r"no space left for the run: .* the last checkpoint is .*step-00000002"):
            trainer.run()


class TestOneRun:
    def test_a_second_process_is_refused_until_the_first_dies(self, tmp_path):
        folder = RunFolder(tmp_path / "run")

        def claims():
            try:
                RunFolder(tmp_path / "run").claim()
            except BlockingIOError as error:
                return 3 if f"process {os.getppid()}" in str(error) else 4
            return 0

        assert in_another_process(claims) == 0
        folder.claim()
        assert in_another_process(claims) == 3
        worker = os.fork()  # a data worker that outlives its trainer must not hold the folder
        if worker == 0:
            time.sleep(600)
            os._exit(0)
        try:
            folder.release()
            assert in_another_process(claims) == 0
        finally:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)

    def test_the_trainer_claims_its_folder(self, config, tmp_path):
        trainer = Trainer(config)
        second = start(command(config), tmp_path / "log")
        second.join()
        assert second.exitcode == 1
        assert "a run is going on" in (tmp_path / "log").read_text()
        trainer.run()
        assert in_another_process(lambda: RunFolder(config.output).claim()) == 0


class TestResume:
    def test_alone_it_takes_every_option_from_the_run(self, config, capsys, caplog):
        Trainer(dataclasses.replace(config, steps=2, pause_seconds=1e-9)).run()
        moved = config.output + "-moved"
        os.rename(config.output, moved)
        (Path(moved) / "config.yaml").write_text(dataclasses.replace(config, steps=3).to_yaml())
        assert main(["train", "--resume", "--output", moved]) == 0
        assert TrainConfig.from_yaml(Path(moved) / "config.yaml") == dataclasses.replace(config, steps=3, output=moved)
        assert load_newest_training_state(Path(moved) / "checkpoints").state["step"] == 3
        assert not Path(config.output).exists()

    def test_a_lost_config_is_taken_from_the_checkpoint(self, config):
        Trainer(dataclasses.replace(config, steps=2)).run()
        path = Path(config.output) / "config.yaml"
        for damaged in ("a: [", "", "# a disk was full"):
            path.write_text(damaged)
            assert TrainConfig.of_run(config.output) == dataclasses.replace(config, steps=2)
        path.unlink()
        assert main(["train", "--resume", "--output", config.output, "--steps", "3"]) == 0
        assert TrainConfig.from_yaml(path) == dataclasses.replace(config, steps=3)

    def test_other_options_are_named_and_applied(self, config, caplog):
        Trainer(dataclasses.replace(config, steps=2)).run()
        changed = dataclasses.replace(config, beta1=0.5, losses=LossWeights(style=0.0))
        resumed = Trainer(changed, resume=True)
        assert "option beta1 was 0.0 until update 2 and is 0.5 from now on" in caplog.text
        assert "option losses.style was 250.0 until" in caplog.text
        for name in ("generator", "discriminator"):
            assert resumed.train_step.optimizers[name].param_groups[0]["betas"] == (0.5, 0.9)
        resumed.run()
        caplog.clear()
        Trainer(changed, resume=True)
        assert "option" not in caplog.text.replace("option vgg", "")

    @pytest.mark.parametrize("change", [{"base_channels": 4}, {"ema": 0.5}, {"muon_lr": 0.1}, {"head_norm": True}])
    def test_what_cannot_change_is_named(self, config, change):
        Trainer(dataclasses.replace(config, steps=1)).run()
        with pytest.raises(ValueError, match=f"does not fit these options: {next(iter(change))} was .*, now"):
            Trainer(dataclasses.replace(config, **change), resume=True)

    def test_weights_to_start_from_are_no_change(self, config):
        Trainer(dataclasses.replace(config, steps=1)).run()
        with pytest.raises(ValueError, match="init_from begins a new run"):
            Trainer(dataclasses.replace(config, init_from="elsewhere"), resume=True)

    def test_without_a_run_it_says_so(self, tmp_path, capsys):
        assert main(["train", "--resume", "--output", str(tmp_path / "none")]) == 1
        assert f"nothing to resume: there is no run in {tmp_path / 'none'}" in capsys.readouterr().err

    def test_another_number_of_images_is_named(self, config, photographs, caplog):
        Trainer(dataclasses.replace(config, steps=1)).run()
        (photographs / "0.png").unlink()
        Trainer(config, resume=True)
        assert "there were 3 images until update 1 and are 2 now" in caplog.text


class TestFormerNames:
    def test_options_and_checkpoints_of_older_versions(self, config, caplog, tmp_path):
        caplog.set_level(logging.INFO)
        config = dataclasses.replace(config, muon_lr=0.02, known_pixels_only=False)
        Trainer(dataclasses.replace(config, steps=2)).run()
        output = Path(config.output)
        (path,) = training_states(output / "checkpoints")
        state = load_training_state(path)
        state = {name.replace("muon_opt", "kernels_opt"): value for name, value in state.items()}
        for name in ("config", "best", "images"):
            del state[name]
        save_training_state(path, state)
        text = (output / "config.yaml").read_text()
        assert "known_pixels_only: false" in text
        old = text.replace("known_pixels_only:", "hide_holes:").replace("muon_lr:", "kernel_rate:")
        (output / "config.yaml").write_text(old)
        assert main(["train", "--resume", "--output", str(output), "--steps", "6"]) == 0
        for name, now in (("hide_holes", "known_pixels_only"), ("kernel_rate", "muon_lr")):
            assert f"option {name} is now called {now}" in caplog.text
        assert TrainConfig.from_yaml(output / "config.yaml") == config
        whole = Trainer(dataclasses.replace(config, output=str(tmp_path / "whole")))
        whole.run()
        found = load_newest_training_state(output / "checkpoints").state
        for name in ("generator", "discriminator"):
            assert_equal(found[name], whole.train_step.networks[name].state_dict())

    def test_flags_too_and_not_both(self, capsys, tmp_path):
        assert main(["train", "--print-config", "--kernel-rate", "0.5", "--hide-holes", "false"]) == 0
        printed = capsys.readouterr().out
        assert "muon_lr: 0.5" in printed
        assert "known_pixels_only: false" in printed
        assert main(["train", "--kernel-rate", "0.5", "--muon-lr", "0.5"]) == 1
        assert "muon_lr is given twice, also by its former name kernel_rate" in capsys.readouterr().err
        path = tmp_path / "options.yaml"
        path.write_text("kernel_rate: 0.25")
        assert main(["train", "--print-config", "--config", str(path), "--muon-lr", "0.5"]) == 0
        assert "muon_lr: 0.5" in capsys.readouterr().out


class TestYaml:
    BOMB = (
        "a: &a ["
        + ",".join(["x"] * 9)
        + "]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (BOMB, "line 2: alias *a is not taken"),
            ("steps: " + "[" * 5000, "nested deeper than 16 levels"),
            ("".join(" " * n + "a:\n" for n in range(100)), "nested deeper than 16 levels"),
            ("steps: " + "9" * 5000, "Exceeds the limit"),
            ("data: x\nsteps: 0x" + "f" * 20000, "at most 4611686018427387904, got int of more than 4,000 digits"),
            ("learning_rate: " + "9" * 4000, "option learning_rate must be float, got 9999"),
            ("learning_rate: .inf", "option learning_rate must be float, got inf"),
            ("crop: " + "x" * 10000, "option crop must be center|random, got 'xxx"),
            ("k" * 500 + ": 1", "unknown option 'kkk"),
            ("steps: 1\nsteps: 2", "line 2: 'steps' is given twice"),
            ("data: 2026-13-45", "month must be in 1..12"),
            ("? [a, b]\n: 1", "line 1: found unhashable key"),
            ("losses: {style: [1]}", "option losses.style must be float, got [1]"),
            ("a: b: c", "line 1: mapping values are not allowed here"),
            ("\0", "not valid YAML"),
            ("#" * 2**21, "2097152 bytes"),
        ],
    )  # fmt: skip
    def test_hostile_files_give_one_line(self, tmp_path, capsys, text, message):
        path = tmp_path / "options.yaml"
        path.write_text(text)
        assert main(["train", "--config", str(path)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert len(error) < 500 + len(str(path)) or "unknown option" in error

    def test_hostile_flags_give_one_line(self, capsys):
        for value in ("[" * 5000, "9" * 5000, "&a [*a]"):
            assert main(["train", "--steps", value]) == 1
            error = capsys.readouterr().err
            assert "option steps must be int" in error
            assert len(error) < 300


def signal_the_group(number):
    """Send a signal to this process and its data workers in the middle of the third update."""
    update, steps = TrainStep.update, iter(range(10**6))

    def signalled(train_step, image, mask):
        if next(steps) == 2:
            os.killpg(0, number)
        return update(train_step, image, mask)

    TrainStep.update = signalled


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_signal_to_the_group_saves_and_exits_0(self, config, number, workers, tmp_path):
        config = dataclasses.replace(config, workers=workers, steps=10**6)
        process = start(command(config), tmp_path / "log", signal_the_group, number)
        process.join()
        assert process.exitcode == 0, (tmp_path / "log").read_text()
        assert "stopped after update 3, saved in" in (tmp_path / "log").read_text()
        assert load_newest_training_state(Path(config.output) / "checkpoints").state["step"] == 3
        assert (Path(config.output) / "model" / "model.safetensors").is_file()

    def test_a_signal_while_waiting_for_data_saves(self, config, monkeypatch):
        trainer = Trainer(config)
        read = SampleStream.__getitem__

        def stuck(stream, number):
            if number >= 4:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(600)
            return read(stream, number)

        monkeypatch.setattr(SampleStream, "__getitem__", stuck)
        trainer.run()
        assert trainer.stopped
        assert training_states(trainer.folder.checkpoints)[-1].name == "step-00000002.pt"

    def test_only_ctrl_c_acts_when_repeated(self):
        with StopRequest() as request:
            signal.raise_signal(signal.SIGTERM)
            request._since -= 2
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            assert request.stopped

    def test_a_signal_that_is_ignored_stays_ignored(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with StopRequest() as request:
                signal.raise_signal(signal.SIGHUP)
                assert not request.stopped
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_a_worker_heeds_its_trainer_alone(self):
        """Signals before, during and after its preparation; then the trainer's SIGTERM ends it, even in a long call."""
        ready, told = os.pipe()
        with blocked_signals():
            worker = os.fork()
            if worker == 0:
                trainer = os.getppid()
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(os.getpid(), number)
                prepare_worker(0)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(os.getpid(), number)
                while signal.SIGTERM in signal.sigpending():  # or two of one number would become one
                    time.sleep(0.01)
                os.write(told, str(trainer).encode())
                time.sleep(600)
                os._exit(1)
        assert os.read(ready, 10) == str(os.getpid()).encode()
        os.kill(worker, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0

    def test_no_signal_reaches_a_thread_of_the_trainer_half_way(self):
        with StopRequest() as request:
            with blocked_signals():
                signal.raise_signal(signal.SIGTERM)  # for this thread; others, of earlier tests, hold nothing back
                assert not request.stopped
            assert request.stopped
        assert threading.active_count() >= 1


class TestWorkers:
    def test_an_error_of_a_worker_is_one_line_and_the_run_is_saved(self, config, monkeypatch, capsys):
        monkeypatch.setattr(InpaintDataset, "draw_pixels", self.failing(InpaintDataset.draw_pixels))
        assert main(command(config, "--workers", "1")) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == "fastinpaint: error: a data worker failed: ValueError: a picture of epoch 1"
        assert load_newest_training_state(Path(config.output) / "checkpoints").state["step"] == 1

    @staticmethod
    def failing(read):
        def draw(images, index, epoch):
            if epoch:
                raise ValueError("a picture of epoch 1")
            return read(images, index, epoch)

        return draw


@pytest.mark.parametrize("workers", [0, 2])  # and of two processes in `make kill`
def test_killed_runs_end_as_if_never_killed(photographs, tmp_path, workers):
    untouched = dataclasses.replace(run_options(tmp_path, 0, 9), output=str(tmp_path / "untouched"))
    finish(untouched, tmp_path / "log")
    killed = run_options(tmp_path, workers, 9)
    kill_and_resume(killed, 3, workers, tmp_path / "log")
    same_end(killed, untouched)
