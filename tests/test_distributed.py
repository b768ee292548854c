"""Losses and weights do not depend on how batches are divided: among two processes over gloo, or in micro-batches."""

import dataclasses
import logging
import multiprocessing
import signal

import pytest
import torch

from fastinpaint.checkpoint.training_state import training_states
from fastinpaint.data.masks import MaskConfig
from fastinpaint.losses.objective import InpaintObjective, LossWeights
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.distributed import join
from fastinpaint.training.metrics import read_metrics
from fastinpaint.training.sampler import SampleBatches
from fastinpaint.training.train_step import TrainStep
from fastinpaint.training.trainer import Trainer
from tests.helpers.runs import assert_equal, become_rank, free_port, make_photographs

BATCH, UPDATES = 8, 20
EVERY_TERM = LossWeights(
    content=0.1, style=1.0, gradient_penalty=1.0, total_variation=0.1, l1_half=0.2, l1_quarter=0.2,
    matching_image=0.1, matching_gradient=0.1,
)  # fmt: skip
NO_MATCHING = dataclasses.replace(EVERY_TERM, matching_image=0.0, matching_gradient=0.0)

pytestmark = pytest.mark.usefixtures("one_thread")


class Features(torch.nn.Module):
    """Stands in for VGG-19."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 6, 3, stride=2)])
        self.requires_grad_(False)

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            maps.append(x)
        return maps


def batches(count, shared, size):
    """Images with masks of very different sizes, and an image without edges, so that no average of parts will do."""
    draw = torch.Generator().manual_seed(5)
    for _ in range(count):
        image = torch.rand(BATCH, 3, size, size, generator=draw, dtype=torch.float64) * 2 - 1
        image[1] = 0.25
        image[:3] = torch.nn.functional.avg_pool2d(image[:3], 9, 1, 4)
        mask = torch.zeros(1 if shared else BATCH, 1, size, size, dtype=torch.float64)
        for index, hole in enumerate(mask):
            hole[:, size // 8 : size // 4 + size * index // 11, size // 5 : size // 2] = 1
        yield image, mask


def train_step_of(weights, ranks=None, accumulate=1, shared=False):
    torch.manual_seed(1)
    generator, discriminator = InpaintGenerator(4, head_norm=False).double(), PatchDiscriminator(2).double()
    return TrainStep(
        generator, InpaintObjective(weights, Features().double()), discriminator, learning_rate=1e-4, muon_lr=0.001,
        clip=5.0, ema=0.9, accumulate=accumulate, ranks=ranks, shared_mask=shared,
    )  # fmt: skip


def updated(train_step, count=UPDATES, shared=False, size=32):
    """Rows of losses, and everything that the updates changed."""
    ranks, rows = train_step.ranks, []
    part = BATCH // ranks.count
    own = slice(ranks.rank * part, (ranks.rank + 1) * part)
    for step, (image, mask) in enumerate(batches(count, shared, size)):
        torch.manual_seed(step)
        terms = train_step.update(image[own], mask if shared else mask[own])
        rows.append({name: value.item() for name, value in terms.items()})
    return rows, train_step.tensors()


def assert_close(found, wanted):
    """In float64 the order of sums moves the first losses by 1e-15; two networks against each other make more of it
    with every update, 1e-11 by the twentieth. Averages of the losses of parts would be off by 1e-2 at once.
    """
    for step, rows in enumerate(zip(found[0], wanted[0], strict=True)):
        assert rows[0] == pytest.approx(rows[1], rel=1e-12 if step == 0 else 1e-7, abs=1e-12)
    assert found[1].keys() == wanted[1].keys()
    for name in wanted[1]:
        assert torch.allclose(found[1][name], wanted[1][name], rtol=1e-6, atol=1e-8), name


def run_case(weights, ranks=None, accumulate=1, **batches):
    return updated(train_step_of(weights, ranks, accumulate, batches.get("shared", False)), **batches)


@pytest.mark.parametrize(("shared", "accumulate", "count"), [(False, 4, UPDATES), (False, 8, 2), (True, 8, 2)])
def test_micro_batches_give_the_update_of_the_whole_batch(shared, accumulate, count):
    options = {"weights": NO_MATCHING, "shared": shared, "count": count, "size": 16 if count == UPDATES else 32}
    wanted = run_case(**options)
    assert_close(run_case(**options, accumulate=accumulate), wanted)
    assert {"edge_quarter", "l1_half", "style", "discriminator_gradient_penalty"} <= wanted[0][0].keys()


def test_matching_in_micro_batches_is_refused():
    with pytest.raises(ValueError, match="set accumulate to 1"):
        train_step_of(EVERY_TERM, accumulate=2)


CASES = {
    "a mask for each sample": {"weights": NO_MATCHING, "size": 16},
    "one mask": {"weights": EVERY_TERM, "shared": True, "count": 2, "size": 16},
    "micro-batches": {"weights": NO_MATCHING, "accumulate": 2, "count": 2},
}


def config_of(folder, name, **changes):
    return TrainConfig(
        data=str(folder / "photographs"), output=str(folder / name), image_size=32, crop="random", base_channels=2,
        discriminator_channels=2, steps=5, batch_size=4, learning_rate=1e-4, workers=0, log_every=1, ema=0.9, flip=True,
        masks=MaskConfig(shared=False), sample_every=0, checkpoint_every=0, device="cpu", **changes,
    )  # fmt: skip


def interrupted(config, rank=None):
    """Train until SIGTERM comes to one rank during the third update."""
    trainer = Trainer(config)
    update = trainer.train_step.update

    def signalled(*batch):
        if trainer.step == 2 and rank in (None, trainer.ranks.rank):
            signal.raise_signal(signal.SIGTERM)
        return update(*batch)

    trainer.train_step.update = signalled
    trainer.run()
    return trainer.step if trainer.stopped else None


class Heard(logging.Handler):
    """Keeps what the package logs."""

    def __init__(self):
        super().__init__()
        self.lines = []
        logging.getLogger("fastinpaint").setLevel(logging.INFO)
        logging.getLogger("fastinpaint").addHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())


def error_of(call):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        call()
    return str(caught.value)


def _process(rank, port, folder):
    """What each of two processes runs; its results lie in ``folder`` afterwards."""
    become_rank(rank, 2, port)
    torch.set_num_threads(1)
    ranks, found = join("cpu"), {}
    for name, case in CASES.items():
        found[name] = run_case(**case, ranks=ranks)
    said = Heard().lines
    whole = Trainer(config_of(folder, "two", cache=True))
    whole.run()
    found["two"] = whole.train_step.tensors()
    found["stopped"] = interrupted(config_of(folder, "parts"), rank=1)
    resumed = Trainer(config_of(folder, "parts"), resume=True)
    resumed.run()
    found["parts"] = resumed.train_step.tensors()
    Trainer(config_of(folder, "one"), resume=True).run()
    found["said"] = said
    spoiled = dict(whole.train_step.tensors())
    if rank == 1:
        spoiled["generator.encoder.0.norm.bias"] = spoiled["generator.encoder.0.norm.bias"] + 1e-6
    found["spoiled"] = error_of(lambda: ranks.require_same_tensors(spoiled))
    found["images"] = error_of(lambda: ranks.require_same("the number of images", 7 + rank))
    found["batch"] = error_of(lambda: Trainer(config_of(folder, "odd", accumulate=4)))
    torch.save(found, folder / f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of two processes, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    make_photographs(folder / "photographs", count=5)
    interrupted(config_of(folder, "one"))
    port = free_port()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)], folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_updates_of_one(two, name):
    case = CASES[name] | {"accumulate": 1}
    first, second = (found[name] for found in two[0])
    assert first[0] == second[0]
    assert_equal(first[1], second[1])
    assert any(key.endswith(".u") for key in first[1])
    assert any(key.startswith("average.") for key in first[1])
    assert_close(first, run_case(**case))


def test_a_run_of_two_processes_is_a_run_of_one(two):
    results, folder = two
    config = config_of(folder, "single", cache=True)
    trainer = Trainer(config)
    trainer.run()
    rows, wanted = (read_metrics(folder / name / "metrics.jsonl") for name in ("two", "single"))
    assert len(rows) == 5
    timed = {"seconds", "images_per_second", "data_wait"}
    for row, expected in zip(rows, wanted, strict=True):
        assert {k: v for k, v in row.items() if k not in timed} == pytest.approx(
            {k: v for k, v in expected.items() if k not in timed}, rel=1e-3, abs=1e-5
        )
    assert_equal(results[0]["two"], results[1]["two"])
    assert {path.name for path in (folder / "two").iterdir()} == {path.name for path in (folder / "single").iterdir()}


def test_sigterm_on_one_rank_stops_both_and_resuming_is_exact(two):
    results, _ = two
    for found in results:
        assert found["stopped"] == 3
        assert_equal(found["parts"], results[0]["two"])


def test_only_the_first_process_speaks_and_another_number_of_processes_is_told(two, caplog):
    caplog.set_level(logging.INFO)
    (first, second), folder = two
    assert second["said"] == []
    assert sum("saved by 1 process, resumed by 2" in line for line in first["said"]) == 1
    assert training_states(folder / "one" / "checkpoints")[-1].name == "step-00000005.pt"
    Trainer(config_of(folder, "parts", pause_seconds=1.0), resume=True)
    assert "saved by 2 processes, resumed by 1" in caplog.text


def test_what_differs_between_processes_is_named(two):
    for found in two[0]:
        assert "generator.encoder.0.norm.bias is no longer the same" in found["spoiled"]
        assert "number of images must be the same in all processes, got [7, 8]" in found["images"]
        assert "multiple of the processes times accumulate, 2 x 4, got 4" in found["batch"]


def test_ranks_take_contiguous_parts_of_each_batch():
    whole = list(SampleBatches(6, 2, 5))
    parts = zip(*(SampleBatches(6, 2, 5, rank, 3) for rank in range(3)), strict=True)
    assert [[n for part in batch for n in part] for batch in parts] == whole


def test_a_certain_device_is_for_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="auto, cpu or cuda with 2 processes, got cuda:1"):
        join("cuda:1")


def test_recomputed_activations_change_nothing():
    plain, recomputed = train_step_of(NO_MATCHING), train_step_of(NO_MATCHING)
    recomputed.generator.checkpoint_activations = True
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = updated(recomputed, 1)
    recomputing = sum(kept)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        wanted = updated(plain, 1)
    assert found[0] == wanted[0]
    assert_equal(found[1], wanted[1])
    assert recomputing < sum(kept)


def test_precision_has_short_names(tmp_path):
    make_photographs(tmp_path / "photographs", count=5)
    for name, wanted in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("bfloat16", torch.bfloat16)):
        config = config_of(tmp_path, name, precision=name)
        assert Trainer(config).train_step.precision == wanted
