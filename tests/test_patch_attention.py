import pytest
import torch
import torch.nn.functional as F

import fastinpaint as fi
from fastinpaint.reference import patch_attention as reference

CASES = [(1, 1), (1, 2), (3, 1), (3, 2), (5, 2), (5, 3)]


def _slow_patch_attention(features, kernel_size, stride, scale, aggregation):
    """The definition, position by position, for one sample (C, H, W)."""
    _, height, width = features.shape
    centre = kernel_size // 2
    big = F.pad(features, [kernel_size * 2] * 4)

    def patch(top, left):
        top, left = top + 2 * kernel_size, left + 2 * kernel_size
        return big[:, top : top + kernel_size, left : left + kernel_size]

    before = [max((-(-n // stride) - 1) * stride + kernel_size - n, 0) // 2 for n in (height, width)]
    keys = torch.stack(
        [patch(i - before[0], j - before[1]) for i in range(0, height, stride) for j in range(0, width, stride)]
    )  # (M, C, k, k)
    norms = keys.flatten(1).norm(dim=1).clamp_min(1e-4)
    beta = {}
    for i in range(height):
        for j in range(width):
            scores = (keys * patch(i - centre, j - centre)).flatten(1).sum(1) / norms
            beta[i, j] = torch.softmax(scale * scores, 0)
    output = torch.zeros_like(features)
    sign = 1 if aggregation == "correlation" else -1
    for i in range(height):
        for j in range(width):
            for di in range(kernel_size):
                for dj in range(kernel_size):
                    weights = beta.get((i + sign * (di - centre), j + sign * (dj - centre)))
                    if weights is not None:
                        output[:, i, j] += weights @ keys[:, :, di, dj] / 4
    return output


@pytest.mark.parametrize("aggregation", ["correlation", "overlap_add"])
@pytest.mark.parametrize(("kernel_size", "stride"), CASES)
def test_equals_the_definition(kernel_size, stride, aggregation):
    features = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    output = fi.patch_attention(features, kernel_size=kernel_size, stride=stride, aggregation=aggregation)
    for sample, result in zip(features, output, strict=True):
        expected = _slow_patch_attention(sample, kernel_size, stride, 10.0, aggregation)
        torch.testing.assert_close(result, expected)


def test_reference_gradcheck():
    features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    for aggregation in ("correlation", "overlap_add"):
        torch.autograd.gradcheck(
            lambda x, aggregation=aggregation: reference.patch_attention(x, aggregation=aggregation), features
        )


def test_flat_black_patches_stay_finite():
    features = torch.zeros(1, 2, 6, 6, requires_grad=True)
    output = fi.patch_attention(features)
    assert torch.equal(output, torch.zeros_like(output))
    output.sum().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    features = torch.randn(1, 4, 6, 6).to(dtype)
    expected = fi.patch_attention(features.float(), backend="reference").to(dtype)
    torch.testing.assert_close(fi.patch_attention(features), expected)


def test_compiles_without_graph_break():
    features = torch.randn(1, 2, 6, 6)
    compiled = torch.compile(fi.patch_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), fi.patch_attention(features))


@pytest.mark.parametrize("shape", [(0, 4, 6, 6), (1, 4, 1, 1), (1, 1, 7, 3)])
def test_odd_shapes_and_memory_layouts(shape):
    features = torch.randn(shape)
    output = fi.patch_attention(features)
    assert output.shape == shape
    channels_last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fi.patch_attention(channels_last), output)


def test_errors_say_what_was_wanted_and_what_came():
    features = torch.randn(1, 2, 6, 6)
    with pytest.raises(ValueError, match="kernel_size must be odd and positive, got 2"):
        fi.patch_attention(features, kernel_size=2)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        fi.patch_attention(features, stride=0)
    with pytest.raises(ValueError, match="aggregation must be one of correlation, overlap_add, got 'sum'"):
        fi.patch_attention(features, aggregation="sum")
    with pytest.raises(ValueError, match=r"shape \(B, C, H, W\), got \(2, 6, 6\)"):
        fi.patch_attention(features[0])
