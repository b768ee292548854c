import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastinpaint.cli import main
from fastinpaint.evaluation.baselines import BASELINES
from fastinpaint.evaluation.cases import cases_with_masks, drawn_cases, load_case
from fastinpaint.evaluation.evaluate import OURS, Evaluation, EvaluationOptions, Row
from fastinpaint.evaluation.features import InceptionFeatures, LpipsDistance
from fastinpaint.evaluation.holes import BINS, KINDS, HoleOptions, draw_hole, expand_kinds
from fastinpaint.evaluation.intervals import bootstrap
from fastinpaint.evaluation.summary import differences, summarize
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models import pretrained
from fastinpaint.models.generator import InpaintGenerator
from tests.helpers.photographs import crops

SIZE = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    for index, pixels in enumerate(crops(5, SIZE)):
        Image.fromarray(pixels).save(folder / ("deep" if index % 2 else "") / f"photo-{index}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    InpaintGenerator(2, head_norm=False).save_pretrained(folder)
    return folder


def evaluate(model, photos, output, *more):
    arguments = ["evaluate", "--model", model, "--data", photos, "--output", output, "--device", "cpu"]
    return main([str(argument) for argument in (*arguments, "--image-size", SIZE, *more)])


class TestBaselines:
    @pytest.mark.parametrize("name", BASELINES)
    def test_known_pixels_are_kept_and_the_hole_is_not_looked_at(self, name):
        (picture,) = crops(1, 50)
        hole = np.zeros((50, 50), bool)
        hole[20:34, 10:30] = True
        other = np.where(hole[..., None], 255 - picture, picture)
        filled = BASELINES[name](picture, hole)
        np.testing.assert_array_equal(filled[~hole], picture[~hole])
        np.testing.assert_array_equal(BASELINES[name](other, hole), filled)

    def test_harmonic_continues_a_ramp(self):
        ramp = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None] * 5, (50, 50, 3)).copy()
        hole = np.zeros((50, 50), bool)
        hole[20:34, 10:30] = True
        error = np.abs(BASELINES["harmonic"](ramp, hole).astype(int) - ramp)[hole]
        assert error.max() <= 8  # of 65 across the hole


class TestHoles:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("size", [(256, 256), (64, 96)])
    def test_ratios(self, kind, size):
        for number in range(8):
            hole = draw_hole(kind, *size, seed=3, name="a", number=number)
            assert hole.shape == size
            assert 0 < hole.sum() < hole.size
            if kind in BINS:
                low, high = (int(percent) / 100 for percent in kind.split("-"))
                assert low <= hole.mean() < high
            elif kind == "strokes":
                assert 0.1 <= hole.mean() < 0.3
            else:
                rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
                scale = min(size) / 256
                assert all(round(64 * scale) <= len(side) <= round(96 * scale) for side in (rows, columns))
                assert hole.sum() == len(rows) * len(columns)

    def test_depend_on_their_arguments_alone(self):
        def draw(**changes):
            return draw_hole(**({"kind": "strokes", "height": 64, "width": 64, "seed": 1, "name": "a"} | changes))

        np.testing.assert_array_equal(draw(), draw())
        for changes in ({"seed": 2}, {"name": "b"}, {"number": 1}, {"kind": "20-30"}):
            assert (draw() != draw(**changes)).any()

    def test_the_list_stays_what_it_is(self):
        holes = [draw_hole(kind, 64, 64, seed=0, name="coco-001") for kind in ("box", "strokes", "50-60")]
        assert [int(hole.sum()) for hole in holes] == LIST_OF_SEED_0

    def test_errors(self):
        with pytest.raises(ValueError, match=r"must be one of bins, box, .* got 'ring'"):
            expand_kinds(("box", "ring"))
        assert expand_kinds(("bins", "box", "0-10")) == (*BINS, "box")
        with pytest.raises(ValueError, match="1 <= least <= greatest, got 9 and 3"):
            HoleOptions(box_side=(9, 3))


class TestCases:
    def test_limit_is_spread_and_names_are_relative(self, photos):
        names = [spec.name for spec in drawn_cases(photos, ("box",))]
        assert names == ["deep/photo-1", "deep/photo-3", "photo-0", "photo-2", "photo-4"]
        assert [spec.name for spec in drawn_cases(photos, ("box",), limit=2)] == ["deep/photo-1", "photo-0"]

    def test_names_may_be_no_text(self, photos, model, tmp_path, capsys):
        (tmp_path / "odd").mkdir()
        name = os.fsdecode(b"\xff\xfe.png")
        try:
            shutil.copy(next(photos.rglob("*.png")), tmp_path / "odd" / name)
        except OSError:
            pytest.skip("this file system takes names in UTF-8 alone")
        assert evaluate(model, tmp_path / "odd", tmp_path / "out") == 0
        assert "\\udcff\\udcfe" in (tmp_path / "out" / "cases.csv").read_text(encoding="utf-8")
        assert cases_with_masks(tmp_path / "odd", tmp_path / "out" / "holes")[0].name == name.removesuffix(".png")

    def test_missing_mask_is_named(self, photos, tmp_path):
        for name in ("photo-0", "photo-2"):
            Image.fromarray(np.eye(SIZE) > 0).save(tmp_path / f"{name}.png")
        with pytest.raises(FileNotFoundError, match=r"no mask for 3 of 5 pictures, the first is deep/photo-1"):
            cases_with_masks(photos, tmp_path)

    @pytest.mark.parametrize("value", [0, 255])
    def test_hole_must_be_a_part(self, photos, tmp_path, value):
        Image.new("L", (SIZE, SIZE), value).save(tmp_path / "mask.png")
        (spec, *_) = cases_with_masks(photos, tmp_path / "mask.png")
        with pytest.raises(ValueError, match=r"marks no hole|must mark a part|covers the whole"):
            load_case(spec, SIZE, 0, HoleOptions())


@pytest.fixture(scope="module")
def report(model, photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    baselines = ("telea", "biharmonic", "mean-colour")
    more = ("--holes", "box", "20-30", "--baselines", *baselines, "--slow-limit", 4, "--batch-size", 3)
    assert evaluate(model, photos, output, *more) == 0
    return output


class TestModel:
    def test_files(self, report):
        for name in ("cases.csv", "summary.json", "report.md", "contact_sheet.png", "holes/holes.json"):
            assert (report / name).is_file()
        assert len(list((report / "holes").rglob("*.png"))) == 10

    def test_scores_are_those_of_the_filled_pictures(self, report, model, photos):
        rows = read_csv(report / "cases.csv")
        assert len(rows) == 5 * 2 * 3 + 4
        inpainter = Inpainter.from_pretrained(model, "cpu")
        for spec in drawn_cases(photos, ("box", "20-30")):
            case = load_case(spec, SIZE, 0, HoleOptions())
            truth, hole = case.truth.astype(float) / 255, case.hole
            for method, fill in ((OURS, inpainter), ("mean colour", BASELINES["mean-colour"])):
                error = (fill(case.truth, hole) / 255.0 - truth) ** 2
                (row,) = [r for r in rows if (r["image"], r["hole"], r["method"]) == (spec.name, spec.kind, method)]
                assert float(row["psnr"]) == pytest.approx(-10 * np.log10(error.mean()), rel=1e-3)
                assert float(row["psnr_hole"]) == pytest.approx(-10 * np.log10(error[hole].mean()), rel=1e-3)
                assert float(row["ratio"]) == hole.mean()

    def test_summary(self, report):
        summary = json.loads((report / "summary.json").read_text())
        rows = read_csv(report / "cases.csv")
        assert summary["definition"]["name"] == "standard"
        for line in summary["scores"]:
            values = [
                float(row["psnr_hole"])
                for row in rows
                if row["method"] == line["method"] and line["hole"] in ("all", row["hole"])
            ]
            score = line["scores"]["psnr_hole"]
            assert score["mean"] == pytest.approx(np.mean(values))
            assert score["low"] <= score["mean"] <= score["high"]
            assert score["cases"] == line["cases"] == len(values)
        (slow,) = [line for line in summary["scores"] if (line["hole"], line["method"]) == ("all", "biharmonic")]
        assert slow["cases"] == 4
        table = (report / "report.md").read_text()
        assert "Metrics: standard." in table
        assert "| all     | Telea" in table or "| all   | Telea" in table

    def test_the_written_list_of_holes_repeats_the_evaluation(self, report, model, photos, tmp_path):
        more = ("--masks", report / "holes", "--seed", 5, "--sheet-rows", 0)
        assert evaluate(model, photos, tmp_path, *more) == 0
        wanted = [row for row in read_csv(report / "cases.csv") if row["method"] == OURS]
        found = read_csv(tmp_path / "cases.csv")
        assert [row["psnr_hole"] for row in found] == [row["psnr_hole"] for row in wanted]

    def test_a_model_that_ships_is_evaluated_by_name(self, model, photos, tmp_path, monkeypatch):
        shutil.copytree(model, tmp_path / "weights" / "small")
        monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "weights")
        monkeypatch.chdir(tmp_path)
        assert evaluate("small", photos, "out", "--holes", "box", "--metrics", "mae", "--limit", 1) == 0
        digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["model_sha256"] == digest

    def test_a_report_is_not_overwritten_unasked(self, report, model, photos, capsys):
        assert evaluate(model, photos, report) == 1
        assert "--overwrite" in capsys.readouterr().err

    def test_as_original(self, model, photos, tmp_path, capsys):
        assert evaluate(model, photos, tmp_path, "--as-original", "--limit", 1, "--holes", "box") == 0
        printed = capsys.readouterr().out
        assert "Metrics: as the original system." in printed
        assert "edges and gradients of the whole picture" in printed
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert set(summary["scores"][0]["scores"]) == {
            *("mae", "psnr", "ssim", "uqi", "vif"),
            *("mae_hole", "psnr_hole", "ssim_hole", "uqi_hole"),
        }

    def test_chosen_metrics(self, model, photos, tmp_path):
        assert evaluate(model, photos, tmp_path, "--metrics", "psnr", "--limit", 1, "--holes", "box") == 0
        (row,) = read_csv(tmp_path / "cases.csv")
        assert [name for name in row if name[:4] in ("psnr", "ssim", "mae", "mae_")] == ["psnr", "psnr_hole"]

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--holes", "ring"), "a kind of hole must be one of"),
            (("--baselines", "sorcery"), "a baseline must be one of telea"),
            (("--metrics", "niqe"), "a metric must be one of mae"),
            (("--truth", "x"), "--truth with --results"),
            (("--limit", "0"), "limit must be at least 1"),
        ],
    )
    def test_errors_are_one_line(self, model, photos, tmp_path, more, message, capsys):
        assert evaluate(model, photos, tmp_path / "out", *more) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


class TestResults:
    @pytest.fixture
    def results(self, photos, tmp_path):
        for spec in drawn_cases(photos, ("box",)):
            pixels = np.array(Image.open(spec.image)) // 2
            path = tmp_path / "results" / f"{spec.name}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return tmp_path / "results"

    def judge(self, photos, results, output, *more):
        arguments = ("evaluate", "--truth", photos, "--results", results, "--output", output, "--device", "cpu")
        return main([str(argument) for argument in (*arguments, *more)])

    def test_whole_pictures(self, photos, results, tmp_path):
        assert self.judge(photos, results, tmp_path / "out") == 0
        rows = read_csv(tmp_path / "out" / "cases.csv")
        assert len(rows) == 5
        truth = np.array(Image.open(photos / "deep" / "photo-1.png"))
        assert float(rows[0]["mae"]) == pytest.approx(np.mean((truth - truth // 2) / 255))
        assert "psnr_hole" not in rows[0]

    def test_masks_give_holes_and_baselines(self, photos, results, tmp_path):
        Image.fromarray(np.tri(SIZE, dtype=bool)).save(tmp_path / "mask.png")
        more = ("--masks", tmp_path / "mask.png", "--baselines", "telea")
        assert self.judge(photos, results, tmp_path / "out", *more) == 0
        rows = read_csv(tmp_path / "out" / "cases.csv")
        assert {row["method"] for row in rows} == {"results", "Telea"}
        assert all(float(row["psnr_hole"]) > 0 for row in rows)

    def test_another_size_is_named(self, photos, results, tmp_path, capsys):
        Image.new("RGB", (8, 9)).save(results / "photo-2.bmp")
        assert self.judge(photos, results, tmp_path / "out") == 1
        assert "photo-2.bmp must have the size 64x64" in capsys.readouterr().err

    def test_missing_result_is_named(self, photos, results, tmp_path, capsys):
        (results / "photo-2.bmp").unlink()
        assert self.judge(photos, results, tmp_path / "out") == 1
        assert "no result for 1 of 5 pictures, the first is photo-2" in capsys.readouterr().err


class TestIntervals:
    def test_coverage_and_mean(self):
        rng = np.random.default_rng(0)
        inside = 0
        for trial in range(200):
            values = rng.normal(3, 2, 40)
            interval = bootstrap(values, list(map(str, range(40))), resamples=400, seed=trial)
            assert interval.mean == pytest.approx(values.mean())
            inside += interval.low <= 3 <= interval.high
        assert 175 <= inside <= 199

    def test_holes_of_one_photograph_count_once(self):
        values = np.random.default_rng(0).normal(size=30)
        alone = bootstrap(values, list(map(str, range(30))))
        tenfold = bootstrap(np.repeat(values, 10), [str(i // 10) for i in range(300)])
        assert tenfold.high - tenfold.low == pytest.approx(alone.high - alone.low, rel=1e-9)

    def test_one_photograph_has_no_interval(self):
        assert bootstrap([1.0, 2.0], ["a", "a"]) == (1.5, 1.5, 1.5, 2)

    def test_differences_are_paired(self, photos):
        specs = drawn_cases(photos, ("box",))
        rows = [Row(i, OURS, 0.1, {"psnr": 10.0 * i + 1}) for i in range(5)]
        rows += [Row(i, "Telea", 0.1, {"psnr": 10.0 * i}) for i in range(3)]
        (line,) = differences(rows, specs, OURS)
        assert line.scores["psnr"] == (1.0, 1.0, 1.0, 3)
        assert [line.cases for line in summarize(rows, specs)] == [5, 3]


def test_an_original_checkpoint_from_conversion_to_scores(photos, tmp_path, capsys):
    """The documented way to repeat the paper's tables, on the checkpoint of a narrow network."""
    checkpoint = Path(__file__).parent / "golden" / "tf_checkpoint_w16"
    assert main(["convert", str(checkpoint), str(tmp_path / "model")]) == 0
    more = ("--as-original", "--holes", "box", "--limit", 2, "--resamples", 0)
    assert evaluate(tmp_path / "model", photos, tmp_path / "report", *more) == 0
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["definition"]["name"] == "as the original system"
    assert summary["whole_input"] is True
    assert {"mae", "psnr", "ssim", "uqi", "vif"} <= set(summary["scores"][0]["scores"])
    assert "edges and gradients of the whole picture" in capsys.readouterr().out


def test_two_processes_give_the_same_numbers(model, photos, tmp_path):
    """FID and LPIPS with drawn weights among them."""
    networks = {"inception": InceptionFeatures(), "lpips": LpipsDistance("alex")}
    for name, network in networks.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    arguments = ["evaluate", "--model", model, "--data", photos, "--device", "cpu", "--image-size", SIZE]
    arguments += ["--holes", "box", "strokes", "--baselines", "telea", "--limit", 4]
    arguments += ["--batch-size", 3, "--sheet-rows", 0]
    arguments += [word for name in networks for word in (f"--{name}", tmp_path / f"{name}.pth")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastinpaint"]
    for name, program in (("one", ["-m", "fastinpaint"]), ("two", launch)):
        command = [sys.executable, *program, *map(str, arguments), "--output", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    assert one == two
    assert len(one["fid"]) == 2
    assert all(line["scores"]["lpips"] for line in one["scores"])
    for name in ("cases.csv", "holes/holes.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_without_torchmetrics_ms_ssim_alone_is_left_out(photos, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    options = EvaluationOptions(data=photos, model=model, image_size=176, holes=("box",), limit=1, device="cpu")
    evaluation = Evaluation(options)
    (row,) = evaluation.run()
    assert {"ssim", "vif"} <= set(row.scores)
    assert "ms_ssim" not in row.scores
    assert any("MS-SSIM is left out" in note for note in evaluation.notes)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


LIST_OF_SEED_0 = [306, 718, 2383]  # pixels
