import copy
import dataclasses
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fastinpaint.checkpoint.training_state import load_training_state, training_states
from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.masks import MaskConfig, MaskSampler
from fastinpaint.losses.objective import InpaintObjective, LossWeights
from fastinpaint.models import layers
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.vgg import VGG19Features
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.export import export_run
from fastinpaint.training.initial import blended
from fastinpaint.training.interrupts import StopRequest, worker_context
from fastinpaint.training.metrics import MetricsLog, read_metrics
from fastinpaint.training.muon import Muon, orthogonalise
from fastinpaint.training.options import from_mapping, to_mapping
from fastinpaint.training.presets import find_config
from fastinpaint.training.sampler import SampleBatches, SampleStream
from fastinpaint.training.train_step import TrainStep
from fastinpaint.training.trainer import Trainer
from fastinpaint.training.validation import Validation
from tests.helpers.recorder import FakeRecorder
from tests.helpers.runs import assert_equal

MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


pytestmark = pytest.mark.usefixtures("one_thread")


def weights(trainer):
    return {
        f"{name}.{key}": value.clone()
        for name, network in trainer.train_step.networks.items()
        for key, value in network.state_dict().items()
    }


class TestConfig:
    def test_yaml_gives_back_the_same_options(self, tmp_path):
        config = TrainConfig(data="a: b", learning_rate=3e-5, vgg=None, losses=LossWeights(style=1.5))
        path = tmp_path / "options.yaml"
        path.write_text(config.to_yaml())
        assert TrainConfig.from_yaml(path) == config

    def test_every_option_states_its_default_and_meaning(self):
        text = TrainConfig().to_yaml()
        for field in dataclasses.fields(TrainConfig):
            assert f"\n{field.name}:" in "\n" + text
            assert field.metadata["help"] in text

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"learning_rat": 1}, "unknown option learning_rat; did you mean learning_rate"),
            ({"losses": {"styel": 1}}, "unknown option losses.styel; did you mean losses.style"),
            ({"batch_size": 1.5}, "option batch_size must be int, got 1.5"),
            ({"batch_size": True}, "option batch_size must be int, got True"),
            ({"learning_rate": "fast"}, "option learning_rate must be float, got 'fast'"),
            ({"crop": "middle"}, r"option crop must be center\|random, got 'middle'"),
            ({"losses": 3}, "losses must be a mapping"),
            ({"masks": {"brush_width": [1]}}, r"option masks.brush_width must be \[int, int\], got \[1\]"),
        ],
    )
    def test_wrong_options_are_named(self, values, message):
        with pytest.raises(ValueError, match=message):
            from_mapping(TrainConfig, values)

    def test_numbers_that_yaml_reads_as_text(self, tmp_path):
        path = tmp_path / "options.yaml"
        path.write_text("learning_rate: 1e-4\nmasks: {brush_width: [3, 4]}\n")
        config = TrainConfig.from_yaml(path)
        assert config.learning_rate == 1e-4
        assert config.masks.brush_width == (3, 4)
        assert to_mapping(config)["masks"]["brush_width"] == [3, 4]

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"data": ""}, "data is required"), ({"image_size": 40}, "image_size"), ({"steps": 0}, "steps")],
    )
    def test_impossible_options_are_named(self, config, change, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **change).validate()

    def test_pace_rises_and_falls(self):
        config = TrainConfig(steps=110, warmup_steps=10, schedule="cosine")
        rates = [config.lr_factor(step) for step in range(110)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[10] == 1.0
        assert rates[60] == pytest.approx(0.5)
        assert rates[-1] < 0.001


class TestLearner:
    def test_both_networks_learn_from_one_forward_pass(self):
        generator, discriminator = InpaintGenerator(2, head_norm=False), PatchDiscriminator(2)
        calls = []
        generator.register_forward_hook(lambda *_: calls.append(1))
        objective = InpaintObjective(LossWeights(content=0.0, style=0.0))
        before = [p.detach().clone() for p in (*generator.parameters(), *discriminator.parameters())]
        train_step = TrainStep(generator, objective, discriminator, learning_rate=1e-3)
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., 8:24, 8:24] = 1
        terms = train_step.update(torch.rand(2, 3, 32, 32) * 2 - 1, mask)
        assert len(calls) == 1
        assert {"l1_hole", "edge_full", "adversarial", "total", "discriminator_total"} <= terms.keys()
        after = [*generator.parameters(), *discriminator.parameters()]
        count = len(list(generator.parameters()))
        assert any(not torch.equal(a, b) for a, b in zip(before[:count], after[:count], strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(before[count:], after[count:], strict=True))

    def test_gradients_are_those_of_separate_backward_passes(self):
        torch.manual_seed(1)
        generator, discriminator = InpaintGenerator(2, head_norm=False), PatchDiscriminator(2)
        objective = InpaintObjective(LossWeights(content=0.0, style=0.0))
        train_step = TrainStep(generator, objective, discriminator, learning_rate=0.0)
        image = torch.rand(2, 3, 32, 32) * 2 - 1
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., :16] = 1
        vectors = [layer.u.clone() for layer in discriminator.layers]
        train_step.update(image, mask)
        found = {name: [p.grad for p in net.parameters()] for name, net in train_step.networks.items()}
        for layer, vector in zip(discriminator.layers, vectors, strict=True):
            layer.u.copy_(vector)
        output = train_step.predict(image, mask)
        total = objective.generator_terms(image, mask, output, discriminator)["total"]
        wanted = torch.autograd.grad(total, list(generator.parameters()), allow_unused=True)
        for a, b in zip(found["generator"], wanted, strict=True):
            torch.testing.assert_close(a, b)
        total = objective.discriminator_terms(image, mask, output, discriminator)["total"]
        wanted = torch.autograd.grad(total, list(discriminator.parameters()))
        for a, b in zip(found["discriminator"], wanted, strict=True):
            torch.testing.assert_close(a, b)

    def test_the_layout_is_that_of_the_features_too(self):
        objective = InpaintObjective(LossWeights(adversarial=0.0), VGG19Features())
        TrainStep(InpaintGenerator(2), objective, channels_last=True)
        assert objective.features.features[2].weight.is_contiguous(memory_format=torch.channels_last)

    def test_bfloat16_and_channels_last_learn(self):
        objective = InpaintObjective(LossWeights(adversarial=0.0, content=0.0, style=0.0))
        generator = InpaintGenerator(2, head_norm=False)
        train_step = TrainStep(generator, objective, learning_rate=1e-2, precision=torch.bfloat16, channels_last=True)
        image, mask = torch.rand(2, 3, 32, 32) * 2 - 1, torch.zeros(1, 1, 32, 32)
        mask[..., 8:24, 8:24] = 1
        totals = [float(train_step.update(image, mask)["total"]) for _ in range(20)]
        assert totals[-1] < 0.9 * totals[0]
        assert all(p.dtype == torch.float32 for p in generator.parameters())


class TestMuon:
    def test_update_is_orthogonal(self):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(3, 8, 27)))
        assert 0.6 < singular.min() <= singular.max() < 1.3
        tall = torch.randn(2, 40, 8)
        assert torch.linalg.svdvals(orthogonalise(tall)).min() > 0.6
        torch.testing.assert_close(orthogonalise(tall)[1], orthogonalise(tall[1:])[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(orthogonalise(torch.zeros(1, 4, 18)), torch.zeros(1, 4, 18))

    def test_weights_of_one_shape_step_as_each_alone(self):
        def stepped(indices):
            parameters = [torch.nn.Parameter(start[index].clone()) for index in indices]
            optimizer = Muon(parameters, lr=0.1)
            for step in range(3):
                for index, parameter in zip(indices, parameters, strict=True):
                    parameter.grad = gradients[step][index]
                optimizer.step()
            return parameters

        shapes = [(8, 3, 3, 3), (8, 3, 3, 3), (4, 3, 3, 3), (8, 27), (40, 2, 2, 2)]
        start = [torch.randn(shape) for shape in shapes]
        gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
        together = stepped(range(5))
        for index in range(5):
            torch.testing.assert_close(stepped([index])[0], together[index], atol=1e-5, rtol=1e-4)

    def test_found_inf_leaves_everything(self):
        weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3))
        optimizer = Muon([weight], lr=0.1)
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        before, mean = weight.detach().clone(), optimizer.state[weight]["mean"].clone()
        weight.grad.fill_(float("nan"))
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        assert torch.equal(weight, before)
        assert torch.equal(optimizer.state[weight]["mean"], mean)

    def test_a_step_goes_downhill_by_a_part_of_the_norm(self):
        weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3))
        before = weight.detach().clone()
        target = torch.randn(8, 3, 3, 3)
        (weight - target).square().sum().backward()
        Muon([weight], lr=0.1).step()
        angle = torch.nn.functional.cosine_similarity(weight.flatten(), before.flatten(), dim=0).arccos().item()
        assert 0.05 < angle < 0.101  # a step of 0.1 of the norm, and what of it does not lie across the weight is lost
        assert (weight - target).norm() < (before - target).norm()

    def test_norms_stay(self):
        weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3))
        norm = weight.detach().norm()
        optimizer = Muon([weight], lr=0.05)
        for _ in range(100):
            weight.grad = torch.randn_like(weight)
            optimizer.step()
        assert weight.norm().item() == pytest.approx(norm.item(), rel=1e-4)

    def test_it_gets_the_weights_in_front_of_norms(self):
        generator = InpaintGenerator(2, head_norm=False)
        objective = InpaintObjective(LossWeights(adversarial=0.0, content=0.0, style=0.0))
        train_step = TrainStep(generator, objective, muon_lr=0.01)
        muon, adam = (
            {id(p) for group in train_step.optimizers[name].param_groups for p in group["params"]}
            for name in ("muon", "generator")
        )
        assert muon | adam == {id(p) for p in generator.parameters()}
        assert not muon & adam
        assert id(generator.encoder[0].convolution.weight) in muon
        assert {
            id(p) for name, p in generator.named_parameters() if any(s in name for s in ("head", "query", "key"))
        } <= adam
        train_step.scale_learning_rates(0.5)
        assert train_step.optimizers["muon"].param_groups[0]["lr"] == 0.005


def train_step_of(seed, **options):
    torch.manual_seed(seed)
    generator, discriminator = InpaintGenerator(2, head_norm=False), PatchDiscriminator(2)
    objective = InpaintObjective(LossWeights(content=0.0, style=0.0, gradient_penalty=1.0))
    return TrainStep(generator, objective, discriminator, learning_rate=1e-3, muon_lr=0.01, **options)


def batches(count, size=32):
    draw = torch.Generator().manual_seed(5)
    for _ in range(count):
        mask = torch.zeros(2, 1, size, size, dtype=torch.uint8)
        mask[..., 8:24, 8:24] = 1
        yield torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=draw), mask


class TermsRecorder(FakeRecorder):
    """Of a step, which must not run while it is recorded: it would change the weights."""

    def blank(self, run):
        return {}

    def fill(self, static, result):
        for name, value in result.items():
            static.setdefault(name, value.clone()).copy_(value)


class TestGraph:
    def updated(self, train_step, count=20):
        rows = []
        for step, (image, mask) in enumerate(batches(count)):
            torch.manual_seed(step)
            train_step.scale_learning_rates(1 - step / count)
            rows.append(train_step.update(image, mask))
        return [{name: value.item() for name, value in row.items()} for row in rows]

    def test_replays_are_the_plain_updates(self):
        recorder = TermsRecorder()
        plain, graphed = train_step_of(1, ema=0.9), train_step_of(1, ema=0.9, cuda_graph=True, recorder=recorder)
        wanted = self.updated(plain)
        assert self.updated(graphed) == wanted
        assert recorder.calls == ["warm up"] * 3 + ["record"] + ["replay"] * 17
        assert graphed.graph.recorded
        for name, network in plain.networks.items():
            assert_equal(graphed.networks[name].state_dict(), network.state_dict())
        assert_equal(graphed.average.state_dict(), plain.average.state_dict())
        assert len({row["total"] for row in wanted}) == 20

    def test_a_failed_recording_is_told_once_and_plain_updates_go_on(self):
        recorder = TermsRecorder("operation not permitted when stream is capturing\nmore")
        graphed = train_step_of(1, cuda_graph=True, recorder=recorder)
        with pytest.warns(RuntimeWarning, match=r"plain steps go on: RuntimeError: operation .* capturing$") as told:
            rows = self.updated(graphed)
        assert len(told) == 1
        assert recorder.calls == ["warm up"] * 3 + ["record"]
        assert rows == self.updated(train_step_of(1))

    def test_another_shape_runs_plainly_and_a_new_size_is_recorded_anew(self):
        recorder = TermsRecorder()
        train_step = train_step_of(1, cuda_graph=True, recorder=recorder)
        self.updated(train_step, 5)
        train_step.update(*next(batches(1, 48)))
        assert recorder.calls == ["warm up"] * 3 + ["record"] + ["replay"] * 2
        train_step.forget_graph()
        train_step.update(*next(batches(1, 48)))
        assert recorder.calls[-1] == "warm up"

    def test_parameters_without_gradients_stay_and_resume_exactly(self, monkeypatch):
        """On CUDA biases in front of a norm get no gradient."""
        monkeypatch.setattr(layers, "_without_bias", lambda x: True)
        options = {"ema": 0.9, "clip": 1.0, "cuda_graph": True}
        train_step, twin = (train_step_of(1, **options, recorder=TermsRecorder()) for _ in range(2))
        before = {name: value.clone() for name, value in train_step.generator.named_parameters()}
        self.updated(train_step, 6)
        unmoved = {name for name, value in train_step.generator.named_parameters() if torch.equal(value, before[name])}
        assert {"encoder.0.convolution.bias", "up_half.convolution.bias"} <= unmoved
        assert "encoder.0.convolution.weight" not in unmoved
        twin.load_state_dict(copy.deepcopy(train_step.state_dict()))
        assert self.updated(twin, 5) == self.updated(train_step, 5)
        assert_equal(twin.generator.state_dict(), train_step.generator.state_dict())
        assert_equal(twin.average.state_dict(), train_step.average.state_dict())

    def test_the_adversary_joins_later(self):
        train_step = train_step_of(1, cuda_graph=True, recorder=TermsRecorder())
        train_step.set_adversary(False)
        before = {name: value.clone() for name, value in train_step.discriminator.state_dict().items()}
        rows = self.updated(train_step, 6)
        assert not any("adversarial" in name for row in rows for name in row)
        assert_equal(train_step.discriminator.state_dict(), before)
        train_step.set_adversary(True)
        assert {"adversarial", "discriminator_total"} <= self.updated(train_step, 1)[0].keys()
        assert not torch.equal(
            train_step.discriminator.layers[0].convolution.weight, before["layers.0.convolution.weight"]
        )


class TestGuards:
    def test_an_update_that_is_not_finite_changes_nothing(self):
        train_step = train_step_of(1, clip=1.0)
        for image, mask in batches(2):
            train_step.update(image, mask)
        before = [
            {name: value.clone() for name, value in network.state_dict().items() if not name.endswith(".u")}
            for network in train_step.networks.values()
        ]
        image, mask = next(batches(1))
        image = image.float()
        image[0, 0, 0, 0] = float("nan")
        assert train_step.update(image, mask)["skipped"] == 1
        for network, kept in zip(train_step.networks.values(), before, strict=True):
            assert_equal({name: network.state_dict()[name] for name in kept}, kept)
        assert train_step.finite()

    def test_gradients_are_clipped_to_the_norm(self):
        free, clipped = train_step_of(1), train_step_of(1, clip=0.01)
        image, mask = next(batches(1))
        for train_step in (free, clipped):
            torch.manual_seed(0)
            train_step.update(image, mask)
        for name in free.networks:
            gradients = [
                torch.cat([p.grad.flatten() for p in train_step.networks[name].parameters() if p.grad is not None])
                for train_step in (free, clipped)
            ]
            torch.testing.assert_close(gradients[1], gradients[0] * 0.01 / gradients[0].norm(), atol=1e-7, rtol=1e-4)

    def test_the_average_follows_the_weights(self):
        train_step = train_step_of(1, ema=0.5)
        weight = train_step.generator.encoder[0].convolution.weight
        wanted = weight.detach().clone()
        for count, (image, mask) in enumerate(batches(6), 1):
            train_step.update(image, mask)
            decay = min(0.5, (1 + count) / (10 + count))
            wanted = decay * wanted + (1 - decay) * weight.detach()
        torch.testing.assert_close(train_step.result.encoder[0].convolution.weight, wanted)
        assert train_step.result is not train_step.generator


class TestTrainer:
    def test_a_run_leaves_everything_behind(self, config, capsys, caplog):
        config = dataclasses.replace(config, sample_every=3, checkpoint_every=2, keep_checkpoints=2)
        model = Trainer(config).run()
        output = Path(config.output)
        assert model == output / "model"
        assert InpaintGenerator.from_pretrained(model).config["base_channels"] == 2
        PatchDiscriminator.from_pretrained(output / "discriminator")
        assert TrainConfig.from_yaml(output / "config.yaml") == config
        assert [path.name for path in training_states(output / "checkpoints")] == [
            "step-00000004.pt",
            "step-00000006.pt",
        ]
        assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == [2, 4, 6]
        assert [path.name for path in sorted((output / "samples").iterdir())] == [
            "step_00000003.png",
            "step_00000006.png",
        ]
        assert not MATPLOTLIB or Image.open(output / "losses.png").size[0] > 400
        assert "VGG" in caplog.text
        assert "images_per_second" in capsys.readouterr().err

    @pytest.mark.parametrize(("workers", "muon_lr"), [(0, 0.02), (2, 0.0)])
    def test_resume_is_exact(self, config, workers, muon_lr):
        losses = LossWeights(gradient_penalty=1.0)
        config = dataclasses.replace(config, workers=workers, muon_lr=muon_lr, losses=losses)
        whole = Trainer(config)
        whole.run()
        parts = dataclasses.replace(config, output=config.output + "-parts", steps=3)
        Trainer(parts).run()
        torch.rand(7)
        resumed = Trainer(dataclasses.replace(parts, steps=6), resume=True)
        assert resumed.step == 3
        resumed.run()
        assert_equal(weights(resumed), weights(whole))
        rows = [read_metrics(Path(c.output) / "metrics.jsonl")[-1]["total"] for c in (config, parts)]
        assert rows[0] == rows[1]

    def test_interrupt_saves_after_the_update_under_way(self, config):
        trainer = Trainer(config)
        update = trainer.train_step.update

        def interrupted(*arguments):
            if trainer.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return update(*arguments)

        trainer.train_step.update = interrupted
        trainer.run()
        assert trainer.stopped
        resumed = Trainer(config, resume=True)
        assert resumed.step == 3
        resumed.run()
        whole = Trainer(dataclasses.replace(config, output=config.output + "-whole"))
        whole.run()
        assert_equal(weights(resumed), weights(whole))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"log_every": 1}, "not finite in update 3: .*total nan"),
            ({"log_every": 100, "checkpoint_every": 4}, "weight is not finite after update 4"),
        ],
    )
    def test_what_is_not_finite_stops_and_keeps_the_checkpoint(self, config, change, message):
        trainer = Trainer(dataclasses.replace(config, steps=2))
        trainer.run()
        (good,) = training_states(trainer.folder.checkpoints)
        content = good.read_bytes()
        resumed = Trainer(dataclasses.replace(config, **change), resume=True)
        with torch.no_grad():
            next(resumed.train_step.generator.parameters()).fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=message + ".*step-00000002"):
            resumed.run()
        assert training_states(trainer.folder.checkpoints) == [good]
        assert good.read_bytes() == content

    def test_no_checkpoint_is_overwritten_or_made_up(self, config):
        with pytest.raises(FileNotFoundError, match="nothing to resume"):
            Trainer(config, resume=True)
        Trainer(dataclasses.replace(config, steps=1)).run()
        with pytest.raises(FileExistsError, match="--resume"):
            Trainer(config)

    def test_checkpoint_of_other_networks_is_refused(self, config):
        Trainer(dataclasses.replace(config, steps=1)).run()
        with pytest.raises(ValueError, match="does not fit these options"):
            Trainer(dataclasses.replace(config, base_channels=4), resume=True)
        with pytest.raises(ValueError, match="does not fit these options"):
            Trainer(dataclasses.replace(config, losses=LossWeights(adversarial=0.0)), resume=True)

    def test_weight_zero_builds_no_discriminator(self, config):
        trainer = Trainer(dataclasses.replace(config, losses=LossWeights(adversarial=0.0)))
        assert trainer.train_step.networks.keys() == {"generator"}

    def test_an_unreadable_image_is_skipped(self, config, photographs):
        (photographs / "broken.png").write_bytes(b"no image")
        with pytest.warns(RuntimeWarning, match=r"broken\.png"):
            Trainer(config).run()


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "total": 1.0}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "to')
    log = MetricsLog(path, step=2)
    log.write({"step": 3, "total": 0.5})
    assert [(row["step"], row["total"]) for row in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_batches_go_on_where_they_stopped():
    whole = list(SampleBatches(4, 0, 5))
    assert whole[2] == [8, 9, 10, 11]
    assert [*SampleBatches(4, 0, 2), *SampleBatches(4, 2, 5)] == whole


def test_stop_request_restores_the_handlers():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert request.stopped
        request._since -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == before
    thread = threading.Thread(target=lambda: StopRequest().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before


def test_the_stream_gives_the_pixels_and_masks_of_a_number(photographs):
    images = InpaintDataset(photographs, 32, "random", 3, flip=True)
    masks = MaskSampler(MaskConfig(), 32, 32, 3)
    stream = SampleStream(images, 3, masks)
    image, mask = stream[7]
    assert image.dtype == mask.dtype == torch.uint8
    assert torch.equal(mask[None].float(), masks.sample(7))
    drawn = [images.draw(index, 2) for index in range(3)]
    assert any(torch.equal(image.float() / 127.5 - 1, wanted) for wanted in drawn)
    assert len(SampleStream(images, 3)[7]) == 1


class TestClock:
    def test_pace_follows_the_time(self):
        config = TrainConfig(steps=1000, max_seconds=60.0, schedule="cosine", warmup_steps=2)
        assert config.lr_factor(0, 30.0) == 0.5
        assert config.lr_factor(10, 30.0) == pytest.approx(0.5)
        assert config.lr_factor(900, 6.0) < 0.1
        assert config.lr_factor(10, 61.0) == 0.0
        assert config.part_over(100, 45.0) == 0.75
        assert config.part_over(1000, 0.0) == 1.0

    def test_a_run_ends_by_itself_and_pauses(self, config, monkeypatch):
        clock = itertools.count()  # a twentieth of a second passes each time it is read
        monkeypatch.setattr("fastinpaint.training.trainer.time", SimpleNamespace(perf_counter=lambda: next(clock) / 20))
        config = dataclasses.replace(config, steps=10**6, max_seconds=4.0, pause_seconds=1.0, ema=0.9, log_every=1000)
        model = Trainer(config).run()
        InpaintGenerator.from_pretrained(model)
        resumed = Trainer(dataclasses.replace(config, pause_seconds=0.0), resume=True)
        assert 1.0 <= resumed.seconds < 4.0
        first = resumed.step
        resumed.run()
        assert resumed.step > first
        assert resumed.seconds >= 4.0
        assert (
            resumed.train_step.optimizers["generator"].param_groups[0]["lr"] < 0.5e-3 or config.schedule == "constant"
        )
        assert read_metrics(Path(config.output) / "metrics.jsonl")[-1]["step"] == resumed.step


class TestSmall:
    """What the preset uses: sizes, late adversary, average, cache, masks for each sample."""

    @pytest.fixture
    def config(self, config):
        return dataclasses.replace(
            config, image_size=48, first_size=32, first_part=0.4, adversarial_start=0.6, ema=0.9, clip=1.0, cache=True,
            flip=True, identity_blocks=True, muon_lr=0.02, steps=8, warmup_steps=2, schedule="cosine",
            losses=LossWeights(content=0.0, style=0.0, l1_half=0.2, l1_quarter=0.2), masks=MaskConfig(shared=False),
            sample_every=1000, sample_count=1,
        )  # fmt: skip

    def test_preset_is_valid(self):
        small = TrainConfig.from_yaml(find_config("small"))
        dataclasses.replace(small, data="somewhere").validate()
        assert all((small.losses.l1_hole, small.losses.structure, small.losses.adversarial))
        assert sum(p.numel() for p in InpaintGenerator(small.base_channels).parameters()) * 2 < 8e6
        with pytest.raises(FileNotFoundError, match=r"no preset of this name: .*small"):
            find_config("smal")

    @pytest.mark.parametrize("workers", [0, 2])
    def test_resume_is_exact(self, config, workers):
        config = dataclasses.replace(config, workers=workers)
        whole = Trainer(config)
        seen = []
        update = whole.train_step.update
        whole.train_step.update = lambda image, mask: seen.append((image.shape, mask.shape)) or update(image, mask)
        whole.run()
        assert [shapes[0][-1] for shapes in seen] == [32] * 4 + [48] * 4
        assert all(mask == (2, 1, *image[2:]) for image, mask in seen)
        parts = dataclasses.replace(config, output=config.output + "-parts")
        stopping = Trainer(parts)
        update = stopping.train_step.update
        steps = iter(range(100))
        stopping.train_step.update = lambda *batch: (
            (next(steps) == 4 and signal.raise_signal(signal.SIGTERM)) or update(*batch)
        )
        stopping.run()
        assert stopping.stopped
        InpaintGenerator.from_pretrained(Path(parts.output) / "model")
        resumed = Trainer(parts, resume=True)
        assert resumed.step == 5
        resumed.run()
        assert_equal(weights(resumed), weights(whole))
        assert_equal(resumed.train_step.average.state_dict(), whole.train_step.average.state_dict())
        assert not (Path(config.output) / "decoded.u8").exists()
        rows = read_metrics(Path(config.output) / "metrics.jsonl")
        assert "adversarial" not in rows[0]
        assert rows[-1]["adversarial"] != 0
        assert {"l1_half", "l1_quarter", "data_wait", "skipped", "seconds"} <= rows[0].keys()

    def test_workers_of_a_cuda_run_give_the_same_batches(self, config, monkeypatch):
        whole = Trainer(config)
        whole.run()
        monkeypatch.setattr("fastinpaint.training.batches.worker_context", lambda cuda: worker_context(cuda=True))
        apart = Trainer(dataclasses.replace(config, output=config.output + "-apart", workers=2))
        apart.run()
        assert worker_context(cuda=False).get_start_method() == multiprocessing.get_start_method()
        assert_equal(weights(apart), weights(whole))

    def test_a_worker_that_never_answers_ends_the_run(self, config, monkeypatch):
        monkeypatch.setattr(SampleStream, "__getitem__", lambda self, number: time.sleep(600))
        with pytest.raises(TimeoutError, match=r"no batch came .* data_timeout = 1 s"):
            Trainer(dataclasses.replace(config, workers=1, data_timeout=1.0)).run()

    def test_checkpoints_are_written_by_time_too(self, config, monkeypatch):
        clock = itertools.count()  # a minute passes each time it is read
        monkeypatch.setattr("fastinpaint.training.trainer.time", SimpleNamespace(perf_counter=lambda: next(clock) * 60))
        saved = []
        trainer = Trainer(dataclasses.replace(config, checkpoint_every=0, checkpoint_minutes=20.0))
        save = trainer._save
        monkeypatch.setattr(trainer, "_save", lambda: saved.append(trainer.step) or save())
        trainer.run()
        assert len(saved) > 1

    def test_models_of_before_do_not_blend(self, tmp_path):
        assert blended(tmp_path) is None
        (tmp_path / "config.json").write_text('{"base_channels": 2}')
        assert blended(tmp_path) is False

    def test_export_and_start_from_it(self, config, tmp_path, caplog):
        trainer = Trainer(config)
        trainer.run()
        files = export_run(Path(config.output), tmp_path / "out")
        assert {path.name for path in files} == {
            "model.safetensors", "config.json", "README.md", "weights.safetensors", "metrics.jsonl", "samples.png",
        } | ({"losses.png"} if MATPLOTLIB else set())  # fmt: skip
        model = InpaintGenerator.from_pretrained(tmp_path / "out")
        name = "encoder.0.convolution.weight"
        torch.testing.assert_close(
            model.state_dict()[name], trainer.train_step.average.state_dict()[name], rtol=1e-3, atol=1e-4
        )
        for source, exact in ((tmp_path / "out", False), (Path(config.output), True)):
            begun = Trainer(dataclasses.replace(config, output=str(tmp_path / "next"), init_from=str(source)))
            close = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}
            assert begun.step == 0
            for network in ("generator", "discriminator", "average"):
                found = getattr(begun.train_step, network).state_dict()
                wanted = getattr(trainer.train_step, network).state_dict()
                for key in wanted:
                    torch.testing.assert_close(found[key], wanted[key], **close)
        assert "poisson_blend" not in caplog.text
        for source in (tmp_path / "out", Path(config.output)):
            caplog.clear()
            blending = dataclasses.replace(config, output=str(tmp_path / "b"), init_from=str(source))
            Trainer(dataclasses.replace(blending, poisson_blend=True))
            assert "was trained with poisson_blend False, this run has True" in caplog.text
        with pytest.raises(ValueError, match="does not fit these options"):
            Trainer(
                dataclasses.replace(
                    config, base_channels=4, output=str(tmp_path / "x"), init_from=str(tmp_path / "out")
                )
            )
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            Trainer(dataclasses.replace(config, output=str(tmp_path / "x"), init_from=str(tmp_path)))

    def test_a_missing_matplotlib_costs_no_run(self, config, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        Trainer(config).run()
        assert "no losses.png" in caplog.text
        assert not (Path(config.output) / "losses.png").exists()

    def test_a_run_whose_updates_are_all_skipped_stops(self, config):
        trainer = Trainer(config)
        weight = next(trainer.train_step.generator.parameters())
        weight.register_hook(lambda gradient: gradient * float("inf"))
        with pytest.raises(FloatingPointError, match=r"gradients .* by update 2"):
            trainer.run()
        InpaintGenerator.from_pretrained(Path(config.output) / "model")

    def test_gradients_that_are_not_finite_once_are_skipped_and_counted(self, config):
        trainer = Trainer(dataclasses.replace(config, log_every=4))
        weight, steps = next(trainer.train_step.generator.parameters()), iter(range(100))
        weight.register_hook(lambda gradient: gradient * float("inf") if next(steps) == 2 else gradient)
        trainer.run()
        rows = read_metrics(Path(config.output) / "metrics.jsonl")
        assert [row["skipped"] for row in rows] == [0.25, 0.0]
        assert trainer.train_step.finite()

    @pytest.mark.parametrize("shared", [True, False])
    def test_a_loss_that_is_not_finite_stops_with_its_batch(self, config, shared):
        trainer = Trainer(dataclasses.replace(config, log_every=4, masks=MaskConfig(shared=shared)))
        update, seen = trainer.train_step.update, []

        def spoiled(image, mask):
            seen.append((image, mask))
            terms = update(image, mask)
            return {**terms, "l1_hole": terms["l1_hole"] * float("nan")} if len(seen) == 3 else terms

        trainer.train_step.update = spoiled
        with pytest.raises(FloatingPointError, match=r"in update 3: l1_hole nan; its batch is in .*00000003"):
            trainer.run()
        kept = load_training_state(Path(config.output) / "not-finite" / "update-00000003.pt")
        assert torch.equal(kept["images"], seen[2][0])
        assert torch.equal(kept["masks"].float(), seen[2][1].float())
        assert math.isnan(kept["terms"]["l1_hole"])
        assert kept["terms"]["total"] > 0
        resumed = Trainer(config, resume=True)
        assert resumed.step == 4
        resumed.run()


class TestSeeing:
    def test_validation_keeps_the_best(self, config, monkeypatch, caplog):
        scores = iter([10.0, 30.0, 20.0])
        monkeypatch.setattr(Validation, "measure", lambda *_: {"validation_psnr_hole": next(scores)})
        config = dataclasses.replace(config, validation=config.data, validate_every=2)
        trainer = Trainer(config)
        trainer.run()
        folder = trainer.folder
        assert load_training_state(folder.checkpoints / "best.pt")["step"] == 4
        assert trainer.best == {"step": 4, "validation_psnr_hole": 30.0}
        best, last = (InpaintGenerator.from_pretrained(path).state_dict() for path in (folder.best, folder.model))
        assert any(not torch.equal(best[name], last[name]) for name in best)
        rows = [row["validation_psnr_hole"] for row in read_metrics(folder.metrics) if "validation_psnr_hole" in row]
        assert rows == [10.0, 30.0, 20.0]
        assert [path.name for path in training_states(folder.checkpoints)] == ["step-00000006.pt"]
        again = Trainer(config, resume=True)
        assert again.best == trainer.best
        again.run()  # has ended: nothing is measured twice
        page = folder.report.read_text()
        assert "best, update 4" in page
        assert "30.0000" in page
        assert not MATPLOTLIB or "data:image/png;base64," in page
        assert "validation</td>" in page

    def test_scores_are_those_of_fixed_pictures_and_holes(self, config):
        validation = Validation(config.data, MaskConfig(), 32, 2)
        filled = []

        class Perfect:
            device = torch.device("cpu")

            def show(self, image, mask):
                filled.append((image, mask))
                return SimpleNamespace(images=[image + 0.5 * self.wrong])

        fake = Perfect()
        fake.wrong = 0
        assert validation.measure(fake, 2)["validation_psnr_hole"] == 100.0
        fake.wrong = 1
        scores = validation.measure(fake, 1)
        assert scores.keys() == {f"validation_{name}" for name in ("psnr", "psnr_hole", "ssim", "ssim_hole")}
        assert scores["validation_psnr_hole"] < scores["validation_psnr"] < 100.0
        assert torch.equal(filled[0][1], torch.cat([mask for _, mask in filled[1:]]))
        assert torch.equal(filled[0][0], torch.cat([image for image, _ in filled[1:]]))
        assert len({mask.sum().item() for _, mask in filled[1:]}) == 2

    def test_tensorboard_shows_scalars_and_pictures(self, config, monkeypatch):
        shown = []

        class Writer:
            def __init__(self, folder, purge_step):
                shown.append((folder, purge_step))

            def add_scalar(self, tag, value, step):
                shown.append((tag, step))

            def add_image(self, tag, cell, step, dataformats):
                shown.append((tag, step, cell.shape, dataformats))

            def close(self):
                shown.append("closed")

        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
        trainer = Trainer(dataclasses.replace(config, tensorboard=True, steps=2, sample_every=2, sample_count=1))
        trainer.run()
        assert shown[0] == (str(trainer.folder.tensorboard), 1)
        assert {("loss/total", 2), ("loss/discriminator_total", 2), ("run/images_per_second", 2)} <= set(shown)
        for scale, side in (("", 32), (" half", 16), (" quarter", 8)):
            for name in ("result", "edges", "gradients"):
                assert (f"sample 1/{name}{scale}", 2, (side, side, 3), "HWC") in shown
        assert shown[-1] == "closed"

    def test_tensorboard_itself_reads_it_back(self, config):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        trainer = Trainer(dataclasses.replace(config, tensorboard=True, steps=2, sample_every=2, sample_count=1))
        trainer.run()
        events = EventAccumulator(str(trainer.folder.tensorboard))
        events.Reload()
        assert [event.step for event in events.Scalars("loss/total")] == [2]
        assert "sample 1/gradients quarter" in events.Tags()["images"]

    def test_a_missing_tensorboard_is_named_before_training(self, config, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(ImportError, match=r"pip install 'fastinpaint\[tensorboard\]'"):
            Trainer(dataclasses.replace(config, tensorboard=True)).run()


class TestPresets:
    @pytest.mark.parametrize("name", ["celeba", "original", "places2", "small"])
    def test_every_preset_is_valid(self, name):
        preset = TrainConfig.from_yaml(find_config(name))
        dataclasses.replace(preset, data="somewhere").validate()

    def test_original_is_the_paper(self):
        original = TrainConfig.from_yaml(find_config("original"))
        assert original.losses == LossWeights()
        assert original.masks == MaskConfig()
        assert (original.beta1, original.beta2, original.learning_rate) == (0.0, 0.9, 1e-5)
        assert original.head_norm
        assert not original.known_pixels_only
        with torch.device("meta"):
            generator = InpaintGenerator(original.base_channels, original.attention, original.head_norm)
        assert sum(p.numel() for p in generator.parameters()) == pytest.approx(15.1e6, rel=0.01)
