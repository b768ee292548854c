import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from fastinpaint.models.blending import harmonic_continuation, poisson_blend
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_known_input
from tests.helpers.photographs import crops


def box(height, width, top, bottom, left, right):
    known = torch.ones(1, 1, height, width, dtype=torch.bool)
    known[..., top:bottom, left:right] = False
    return known


def solved(values, known):
    """Laplace's equation in the hole of (H, W), solved directly; pixels beyond the sides mirror the last ones."""
    height, width = values.shape
    index = np.arange(height * width).reshape(height, width)
    rows, columns, entries = [], [], []
    right = np.where(known, values, 0.0).ravel()
    for y in range(height):
        for x in range(width):
            here = index[y, x]
            rows.append(here), columns.append(here), entries.append(1.0)
            if not known[y, x]:
                for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                    beside = index[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    rows.append(here), columns.append(beside), entries.append(-0.25)
    system = coo_matrix((entries, (rows, columns))).tocsr()
    return spsolve(system, right).reshape(height, width)


@pytest.mark.parametrize(
    ("hole", "part"),  # of the error that the mean colour would have
    [((20, 45, 15, 50), 0.11), ((0, 30, 40, 64), 0.27), ((10, 13, 3, 60), 0.09)],
    ids=["middle", "corner", "line"],
)
def test_continuation_comes_near_the_solution_of_the_equation_of_laplace(hole, part):
    values = torch.from_numpy(np.asarray(crops(1, 64)[0], np.float64)[..., 0] / 255)
    known = box(64, 64, *hole)
    found = harmonic_continuation(values[None, None], known)[0, 0].numpy()
    wanted = solved(values.numpy(), known[0, 0].numpy())
    inside = ~known[0, 0].numpy()
    assert np.array_equal(found[~inside], values.numpy()[~inside])
    level = np.abs(wanted - values.numpy()[~inside].mean())[inside].mean()  # error of the mean colour
    assert np.abs(found - wanted)[inside].mean() < part * level
    assert wanted[inside].std() > 0.03


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (304, 16)])
def test_continuation_of_a_constant_is_that_constant(size):
    torch.manual_seed(0)
    known = torch.rand(3, 1, *size) < 0.3
    known[..., 0, 0] = True
    level = torch.tensor([0.3, -0.7]).view(1, 2, 1, 1).expand(3, 2, *size)
    torch.testing.assert_close(harmonic_continuation(level, known), level)


def test_one_known_pixel_reaches_the_far_end_of_a_large_hole():
    known = torch.zeros(1, 1, 400, 640, dtype=torch.bool)
    known[..., 3, 5] = True
    torch.testing.assert_close(
        harmonic_continuation(torch.full((1, 1, 400, 640), 0.5), known), torch.full((1, 1, 400, 640), 0.5)
    )


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="divisible by 16, got 16 x 24"):
        harmonic_continuation(torch.zeros(1, 1, 16, 24), torch.ones(1, 1, 16, 24, dtype=torch.bool))


def test_nothing_known_gives_the_prediction():
    prediction = torch.rand(1, 3, 16, 16)
    assert torch.equal(
        poisson_blend(prediction, torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)), prediction
    )


class TestBlend:
    @pytest.fixture
    def case(self):
        torch.manual_seed(0)
        image = torch.from_numpy(np.stack(crops(2, 64))).permute(0, 3, 1, 2) / 127.5 - 1
        return torch.rand(2, 3, 64, 64) * 2 - 1, image, box(64, 64, 20, 44, 30, 64)

    def test_known_pixels_are_kept_and_no_colour_of_the_prediction_counts(self, case):
        prediction, image, known = case
        blended = poisson_blend(prediction, image, known)
        torch.testing.assert_close(torch.where(known, blended, 0.0), torch.where(known, image, 0.0))
        torch.testing.assert_close(poisson_blend(prediction + 0.7, image, known), blended, atol=1e-5, rtol=0)

    def test_the_true_gradients_give_the_true_image(self, case):
        _, image, known = case
        torch.testing.assert_close(poisson_blend(image - 0.4, image, known), image, atol=1e-5, rtol=0)

    def test_the_hole_of_the_image_is_not_looked_at(self, case):
        prediction, image, known = case
        wanted = poisson_blend(prediction, image, known)
        assert torch.equal(poisson_blend(prediction, torch.where(known, image, torch.nan), known), wanted)

    def test_gradients(self):
        torch.manual_seed(0)
        prediction = torch.rand(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
        image = torch.rand(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
        known = box(16, 16, 2, 9, 1, 8)
        assert torch.autograd.gradcheck(lambda a, b: poisson_blend(a, b, known), (prediction, image))


class TestGenerator:
    @pytest.fixture
    def inputs(self):
        image = torch.from_numpy(np.stack(crops(2, 64))).permute(0, 3, 1, 2) / 127.5 - 1
        return image, (~box(64, 64, 20, 44, 30, 50)).float()

    @pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
    def test_blends_its_full_size_image(self, inputs, half):
        torch.manual_seed(0)
        plain = InpaintGenerator(2, head_norm=False)
        blending = InpaintGenerator(2, head_norm=False, poisson_blend=True)
        blending.load_state_dict(plain.state_dict())
        image, mask = inputs
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            assembled = assemble_known_input(image, mask)
            raw, blended = plain(assembled), blending(assembled)
        wanted = poisson_blend(raw.images[0].float(), image, mask < 0.5).to(raw.images[0].dtype)
        torch.testing.assert_close(blended.images[0], wanted)
        assert not torch.allclose(blended.images[0], raw.images[0], atol=0.01)
        for a, b in zip((*blended.images[1:], *blended.gradients), (*raw.images[1:], *raw.gradients), strict=True):
            assert torch.equal(a, b)

    def test_is_part_of_the_saved_model(self, tmp_path):
        InpaintGenerator(1, poisson_blend=True).save_pretrained(tmp_path)
        assert InpaintGenerator.from_pretrained(tmp_path).poisson_blend
