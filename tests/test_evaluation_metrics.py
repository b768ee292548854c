"""Every metric beside an independent implementation on 20 photographs: relative 1e-5."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import sewar
import torch
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure, visual_information_fidelity

from fastinpaint.evaluation import metrics
from fastinpaint.evaluation.metrics import ORIGINAL, STANDARD, measure
from tests.helpers.photographs import crops

SIZE = 176
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pictures():
    """20 photographs, results with a smooth filling and a little noise, holes with known pixels on all sides."""
    truth = crops(20, SIZE)
    rng = np.random.default_rng(1)
    results, holes = [], []
    for index, picture in enumerate(truth):
        hole = np.zeros((SIZE, SIZE), bool)
        top, left = rng.integers(30, 60, 2)
        hole[top : top + 70, left : left + 50] = True
        filled = cv2.inpaint(picture, hole.astype(np.uint8), 5, cv2.INPAINT_TELEA)
        noise = rng.normal(0, 2 + index, picture.shape)
        filled = np.where(hole[..., None], filled, np.clip(filled + noise, 0, 255).round()).astype(np.uint8)
        results.append(filled)
        holes.append(hole)
    return results, truth, holes


@pytest.fixture(scope="module")
def scores(pictures):
    results, truth, holes = pictures
    tensors = [torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2) for group in (results, truth)]
    hole = torch.from_numpy(np.stack(holes))[:, None]
    return {definition.name: measure(*tensors, hole, definition) for definition in (STANDARD, ORIGINAL)}


def check(scores, definition, name, oracle, pictures, tolerance=TOLERANCE):
    wanted = np.array([oracle(*each) for each in zip(*pictures, strict=True)])
    np.testing.assert_allclose(scores[definition.name][name].numpy(), wanted, rtol=tolerance)


def unit(picture):
    return picture / 255.0


def grey(picture):
    return rgb2gray(picture / 255.0)


class TestStandard:
    def test_mae(self, scores, pictures):
        check(scores, STANDARD, "mae", lambda a, b, _: np.abs(unit(a) - unit(b)).mean(), pictures)
        check(scores, STANDARD, "mae_hole", lambda a, b, h: np.abs(unit(a)[h] - unit(b)[h]).mean(), pictures)

    def test_psnr(self, scores, pictures):
        check(scores, STANDARD, "psnr", lambda a, b, _: peak_signal_noise_ratio(b, a), pictures)
        check(scores, STANDARD, "psnr", lambda a, b, _: sewar.psnr(b, a), pictures)
        check(scores, STANDARD, "psnr_hole", lambda a, b, h: peak_signal_noise_ratio(b[h], a[h]), pictures)

    def test_ssim(self, scores, pictures):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}

        def oracle(a, b, hole):
            whole, maps = structural_similarity(unit(a), unit(b), channel_axis=-1, full=True, **options)
            return whole, maps[hole].mean()

        found = [oracle(*each) for each in zip(*pictures, strict=True)]
        for name, wanted in zip(("ssim", "ssim_hole"), zip(*found, strict=True), strict=True):
            np.testing.assert_allclose(scores[STANDARD.name][name].numpy(), wanted, rtol=TOLERANCE)

    def test_ms_ssim(self, scores, pictures):
        check(scores, STANDARD, "ms_ssim", ms_ssim, pictures)
        # sewar shifts each scale by a pixel and leaves the border of the last one out
        wanted = [abs(sewar.msssim(b, a)) for a, b, _ in zip(*pictures, strict=True)]
        np.testing.assert_allclose(scores[STANDARD.name]["ms_ssim"].numpy(), wanted, atol=0.08)

    def test_uqi(self, scores, pictures):
        check(scores, STANDARD, "uqi", wang_bovik, pictures)

    def test_vif(self, scores, pictures):
        check(scores, STANDARD, "vif", lambda a, b, _: sewar.vifp(b.astype(float), a.astype(float)), pictures)


class TestOriginal:
    def test_mae(self, scores, pictures):
        def oracle(a, b, mask):
            return np.abs(a - b)[mask].sum() / (a + b)[mask].sum()

        everywhere = np.ones((SIZE, SIZE), bool)
        check(scores, ORIGINAL, "mae", lambda a, b, _: oracle(grey(a), grey(b), everywhere), pictures)
        check(scores, ORIGINAL, "mae_hole", lambda a, b, h: oracle(grey(a), grey(b), h), pictures)

    def test_psnr(self, scores, pictures):
        check(
            scores, ORIGINAL, "psnr", lambda a, b, _: peak_signal_noise_ratio(grey(b), grey(a), data_range=1), pictures
        )

    def test_ssim(self, scores, pictures):
        def oracle(a, b, hole):
            whole, maps = structural_similarity(grey(a), grey(b), data_range=1, win_size=51, full=True)
            return whole, maps[hole].mean()

        found = [oracle(*each) for each in zip(*pictures, strict=True)]
        for name, wanted in zip(("ssim", "ssim_hole"), zip(*found, strict=True), strict=True):
            np.testing.assert_allclose(scores[ORIGINAL.name][name].numpy(), wanted, rtol=TOLERANCE)

    def test_uqi(self, scores, pictures):
        check(scores, ORIGINAL, "uqi", lambda a, b, _: sewar.uqi(grey(b), grey(a)), pictures)

    def test_vif(self, scores, pictures):
        check(scores, ORIGINAL, "vif", lambda a, b, _: sewar.vifp(grey(b), grey(a)), pictures)


def gaussian_moments(a, b):
    def blur(x):
        return scipy.ndimage.gaussian_filter(x, 1.5, truncate=3.5, mode="mirror", axes=(0, 1))

    mean_a, mean_b = blur(a), blur(b)
    return mean_a, mean_b, blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b


def ms_ssim(a, b, _):
    """torchmetrics' definition in SciPy: borders mirrored, left out of contrast, kept in the last scale."""
    a, b, c1, c2 = unit(a), unit(b), 0.01**2, 0.03**2
    total = np.ones(3)
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    product = 1.0
    for scale, weight in enumerate(weights):
        mean_a, mean_b, var_a, var_b, cov = gaussian_moments(a, b)
        contrast = (2 * cov + c2) / (var_a + var_b + c2)
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        value = (contrast * luminance).mean() if scale == len(weights) - 1 else contrast[5:-5, 5:-5].mean()
        product *= max(value, 0) ** weight
        a, b = (x[: len(x) // 2 * 2, : x.shape[1] // 2 * 2] for x in (a, b))
        a, b = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, 3).mean((1, 3)) for x in (a, b))
    assert total.all()
    return product


def wang_bovik(a, b, _):
    """Their formula on sliding windows of 8 x 8."""
    values = []
    for channel in range(3):
        x, y = (
            np.lib.stride_tricks.sliding_window_view(picture[..., channel].astype(float), (8, 8)).reshape(-1, 64)
            for picture in (a, b)
        )
        mx, my, vx, vy = x.mean(1), y.mean(1), x.var(1), y.var(1)
        covariance = ((x - mx[:, None]) * (y - my[:, None])).mean(1)
        flat = vx + vy == 0
        contrast = np.where(flat, 1, 2 * covariance / np.where(flat, 1, vx + vy))
        dark = mx**2 + my**2 == 0
        luminance = np.where(dark, 1, 2 * mx * my / np.where(dark, 1, mx**2 + my**2))
        values.append((contrast * luminance).mean())
    return np.mean(values)


class TestEdges:
    def test_equal_pictures(self):
        picture = torch.from_numpy(np.stack(crops(2, SIZE))).permute(0, 3, 1, 2)
        hole = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
        hole[..., 60:90, 60:90] = True
        for definition in (STANDARD, ORIGINAL):
            for name, values in measure(picture, picture, hole, definition).items():
                wanted = {"mae": 0.0, "psnr": 100.0}.get(name.removesuffix("_hole"), 1.0)
                torch.testing.assert_close(values, torch.full((2,), wanted, dtype=torch.float64), rtol=1e-5, atol=1e-9)

    @pytest.mark.parametrize("definition", [STANDARD, ORIGINAL])
    def test_flat_and_black_pictures_give_numbers(self, definition):
        black, grey_ = torch.zeros(1, 3, 200, 200), torch.full((1, 3, 200, 200), 0.5)
        hole = torch.zeros(1, 1, 200, 200, dtype=torch.bool)
        hole[..., 50:90, 50:90] = True
        for a, b in ((black, black), (black, grey_), (grey_, grey_)):
            scores = measure(a, b, hole, definition, [n for n in definition.metrics if n != "vif"])
            assert all(bool(torch.isfinite(values).all()) for values in scores.values())

    def test_small_pictures_leave_metrics_out(self):
        a = torch.rand(1, 3, 32, 32)
        assert set(measure(a, a, None, STANDARD)) == {"mae", "psnr", "ssim", "uqi"}
        assert set(measure(a, a, None, ORIGINAL)) == {"mae", "psnr", "uqi"}

    def test_batches_do_not_matter(self, pictures, scores):
        results, truth, holes = (torch.from_numpy(np.stack(group[:1])) for group in pictures)
        one = measure(results.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2), holes[:, None], STANDARD)
        for name, values in one.items():
            torch.testing.assert_close(values, scores[STANDARD.name][name][:1], rtol=1e-6, atol=0)

    def test_errors_say_what_was_wanted(self):
        a = torch.rand(1, 3, 32, 32)
        with pytest.raises(ValueError, match=r"two pictures \(B, 3, H, W\)"):
            measure(a, a[..., 1:], None, STANDARD)
        with pytest.raises(ValueError, match=r"a hole \(B, 1, H, W\)"):
            measure(a, a, torch.zeros(1, 32, 32, dtype=torch.bool), STANDARD)
        with pytest.raises(ValueError, match="must be one of mae, psnr"):
            measure(a, a, None, STANDARD, ["niqe"])


def test_own_code_beside_torchmetrics(pictures):
    """The same uniform-window code at torchmetrics' settings, where both have the metric."""
    results, truth, _ = pictures
    a, b = (torch.from_numpy(np.stack(group[:3])).permute(0, 3, 1, 2).double() / 255 for group in (results, truth))
    mean_a, mean_b, square_a, square_b, product = metrics._moments(a, b, metrics._uniform(11))
    variances = square_a - mean_a**2 + square_b - mean_b**2
    top = (2 * mean_a * mean_b + 1e-4) * (2 * (product - mean_a * mean_b) + 9e-4)
    maps = top / ((mean_a**2 + mean_b**2 + 1e-4) * (variances + 9e-4))
    _, wanted = structural_similarity_index_measure(
        a, b, gaussian_kernel=False, kernel_size=11, data_range=1.0, return_full_image=True
    )
    inner = (..., slice(5, -5), slice(5, -5))
    torch.testing.assert_close(maps[inner], wanted[inner], rtol=1e-5, atol=1e-7)
    ours = measure(a, b, None, STANDARD, ["ssim", "vif"])
    _, maps = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(ours["ssim"], maps[inner].mean((1, 2, 3)), rtol=1e-5, atol=0)
    wanted = torch.stack([visual_information_fidelity(x[None] * 255, y[None] * 255) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(ours["vif"], wanted, rtol=1e-5, atol=0)
