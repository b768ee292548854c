import numpy as np
import pytest
import torch
from PIL import Image

from fastinpaint.demo import OWN, UNSEEN, DemoSettings, run_demo
from fastinpaint.demo.photographs import draw_cases, load_photographs, read_photographs, training_batches
from fastinpaint.demo.scores import hole_psnr
from fastinpaint.evaluation.baselines import mean_color, telea
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.training.metrics import read_metrics
from fastinpaint.visualize.sheets import draw_sheet, edge_cell, gradient_cell

pytest.importorskip("skimage")

SMALL = DemoSettings(size=48, tune_size=32, batch_size=4, holes_per_photograph=1, sheet_rows=2, updates=60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("demo")
    InpaintGenerator(4, head_norm=False).save_pretrained(folder / "before")
    paths = run_demo(folder / "out", model=folder / "before", device="cpu", settings=SMALL)
    torch.set_num_threads(threads)
    return paths


def test_pictures_and_table_are_there(demo):
    for name in ("filled", "fine_tuning"):
        sheet = np.asarray(Image.open(demo[name]))
        assert sheet.shape[0] > 2 * 192
        assert sheet.std() > 20
    assert np.asarray(Image.open(demo["losses"])).std() > 5
    report = demo["report"].read_text()
    for word in ("Telea", "mean colour", "images/s", "ms per image", "never saw", "memorised"):
        assert word in report


def test_fine_tuning_really_happened(demo):
    totals = [row["total"] for row in read_metrics(demo["metrics"])]
    assert len(totals) == 60
    assert np.mean(totals[-10:]) < 0.9 * np.mean(totals[:10])
    rows = [line.split("|")[3].strip() for line in demo["report"].read_text().splitlines() if "fine-tuning" in line][:2]
    before, after = map(float, rows)
    assert after > before + 0.5


def test_the_model_fills_and_leaves_the_rest_alone(demo):
    inpainter = Inpainter.from_pretrained(demo["model"], device="cpu")
    for case in draw_cases(load_photographs(OWN[:1], 32), 2, 32, seed=5):
        filled = inpainter(case.picture, case.hole)
        np.testing.assert_array_equal(filled[~case.hole], case.picture[~case.hole])
        assert 5 < hole_psnr(filled, case) < 60


def test_pictures_of_a_folder(tmp_path):
    for name in ("b", "a", "c"):
        Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / f"{name}.png")
    pictures = read_photographs(tmp_path, 32, 2)
    assert list(pictures) == ["a", "b"]
    assert all(picture.shape == (32, 32, 3) for picture in pictures.values())


def test_photographs_are_colour_and_of_the_asked_size():
    pictures = load_photographs(UNSEEN, 40)
    assert all(picture.shape == (40, 40, 3) and picture.std() > 5 for picture in pictures.values())


def test_cases_and_batches_depend_on_the_seed_only():
    pictures = load_photographs(OWN[:2], 32)
    first, again, other = (draw_cases(pictures, 2, 32, seed) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.picture, b.picture)
        np.testing.assert_array_equal(a.hole, b.hole)
    assert any((a.hole != b.hole).any() for a, b in zip(first, other, strict=True))
    batches = [training_batches(pictures, 2, 32, 0) for _ in range(2)]
    for _ in range(3):
        (image, mask), (image2, mask2) = (next(batch) for batch in batches)
        assert torch.equal(image, image2)
        assert torch.equal(mask, mask2)
        assert image.shape == (2, 3, 32, 32)
        assert 0 < mask.mean() < 1


def test_baselines_and_their_measure():
    (case,) = draw_cases(load_photographs(OWN[:1], 32), 1, 32, seed=3)
    for fill in (telea, mean_color):
        filled = fill(case.picture, case.hole)
        np.testing.assert_array_equal(filled[~case.hole], case.picture[~case.hole])
        assert 5 < hole_psnr(filled, case) < 50
    off = case.picture.copy()
    off[case.hole] = case.picture[case.hole] ^ 1  # every value is wrong by 1
    assert hole_psnr(off, case) == pytest.approx(20 * np.log10(255))


def test_predicted_edges_of_a_step_are_thin_and_where_it_is():
    step = torch.zeros(6, 16, 16)
    step[0::2, 7:9] = 4.0  # dy beside a step between rows 7 and 8
    step[0::2, 7] = 4.5
    cell = edge_cell(step)
    assert (cell[7] == 0).all()
    assert (np.delete(cell, 7, axis=0) == 255).all()
    assert gradient_cell(step)[7].min() == 255
    assert gradient_cell(step)[0].max() == 0


def test_an_empty_sheet_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        draw_sheet([], tmp_path / "sheet.png")
