import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastinpaint as fi
from fastinpaint.ops import _backend
from fastinpaint.reference import patch_attention as reference
from tests.golden_data import relative_error

ROOT = Path(__file__).parent.parent
native = pytest.mark.skipif(_backend.NATIVE_ERROR is not None, reason=f"native: {_backend.NATIVE_ERROR}")

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
    options = {"kernel_size": kernel_size, "stride": stride, "aggregation": aggregation}
    output = fi.patch_attention(features, **options, backend="reference")
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


def _run(script, **environment):
    """What a new process prints."""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def _value_and_gradient(features, weight, **options):
    features = features.detach().requires_grad_()
    output = fi.patch_attention(features, **options)
    (output * weight).sum().backward()
    return output.detach(), features.grad


def _check_native(features, tolerance=2e-6, gradient_tolerance=5e-5, **options):
    """Native in float32 against the reference in float64, as relative L2 errors.

    2e-6: logits of about 50 carry rounding of 5e-6, which averages out (measured 8e-7). The gradient is a difference
    of nearly equal means (measured up to 1.4e-5).
    """
    weight = torch.randn(features.shape)
    found = _value_and_gradient(features, weight, backend="native", **options)
    wanted = _value_and_gradient(features.double(), weight.double(), backend="reference", **options)
    assert relative_error(found[0], wanted[0]) < tolerance
    assert relative_error(found[1], wanted[1]) < gradient_tolerance


@native
@pytest.mark.parametrize("aggregation", ["correlation", "overlap_add"])
@pytest.mark.parametrize(("kernel_size", "stride"), [*CASES, (1, 3), (3, 5), (5, 1), (7, 2)])
def test_native_equals_the_reference(kernel_size, stride, aggregation):
    # One pixel; fewer pixels than the patch; one row; channels and columns that fill no vector; two strips of columns.
    for shape in [(1, 4, 1, 1), (1, 3, 2, 4), (2, 1, 1, 19), (2, 5, 9, 33), (1, 2, 17, 75)]:
        _check_native(torch.randn(shape), kernel_size=kernel_size, stride=stride, aggregation=aggregation)


@native
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lower_instruction_sets_equal_the_reference(isa):
    script = """
import torch
from tests.test_patch_attention import _check_native
for shape in [(1, 20, 9, 37), (1, 35, 6, 12)]:
    _check_native(torch.randn(shape))
    _check_native(torch.randn(shape), stride=1, aggregation="overlap_add")
print(torch.ops.fastinpaint.cpu_isa())
"""
    if _run(script, FASTINPAINT_ISA=isa).strip() != isa:
        pytest.skip(f"this processor has no {isa}")


@native
def test_native_handles_norms_below_the_floor():
    """Patches of norm below 1e-4 are divided by a constant, beside others that are not."""
    features = torch.randn(1, 3, 8, 8) * torch.logspace(-7, 0, 8)
    _check_native(features)


@native
def test_native_handles_large_logits():
    # Logits reach 3000 with rounding of 1e-4; nearly one-hot.
    _check_native(30 * torch.randn(1, 8, 8, 8), tolerance=1e-4, gradient_tolerance=1e-3)


@native
def test_native_reads_any_layout(poisoned_memory):
    base = torch.randn(2, 6, 9, 10)
    for features in (
        base.to(memory_format=torch.channels_last),
        base.transpose(2, 3),
        base[:, ::2, 1:, ::3],
        base[:, :1].expand(-1, 4, -1, -1),
    ):
        found = _value_and_gradient(features, torch.ones(()), backend="native")
        wanted = _value_and_gradient(features.contiguous(), torch.ones(()), backend="native")
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        weight = torch.randn(features.shape)
        _check_native(features, gradient_tolerance=1e-4)
        transposed = weight.transpose(2, 3).contiguous().transpose(2, 3)
        contiguous = _value_and_gradient(features, weight, backend="native")
        assert torch.equal(_value_and_gradient(features, transposed, backend="native")[1], contiguous[1])


@native
def test_native_output_does_not_depend_on_the_number_of_threads():
    features, weight = torch.randn(1, 8, 20, 70), torch.randn(1, 8, 20, 70)
    threads = torch.get_num_threads()
    results = {}
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results[count] = _value_and_gradient(features, weight, backend="native")
            again = _value_and_gradient(features, weight, backend="native")
            assert torch.equal(results[count][1], again[1])  # same bits for the same number of threads
    finally:
        torch.set_num_threads(threads)
    for output, gradient in results.values():
        assert torch.equal(output, results[1][0])
        assert relative_error(gradient, results[1][1]) < 1e-6


@native
def test_native_passes_opcheck():
    features = torch.randn(1, 2, 5, 6)
    operators = torch.ops.fastinpaint
    torch.library.opcheck(operators.patch_attention.default, (features.requires_grad_(), 3, 2, 10.0, False))
    arguments = (torch.randn(1, 2, 5, 6), features.detach(), 3, 2, 10.0, True)
    torch.library.opcheck(operators.patch_attention_backward.default, arguments)


@native
def test_native_under_autocast_and_compile():
    features = torch.randn(1, 4, 6, 6, requires_grad=True)
    compiled = torch.compile(fi.patch_attention, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = compiled(features, backend="native")
    assert torch.equal(output, fi.patch_attention(features, backend="native"))
    (gradient,) = torch.autograd.grad(output.square().sum(), features)
    wanted = _value_and_gradient(features, 2 * output.detach(), backend="native")[1]
    assert torch.equal(gradient, wanted)


@native
def test_native_says_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"it computes in float32, got torch\.float64"):
        fi.patch_attention(torch.randn(1, 2, 6, 6, dtype=torch.float64), backend="native")
    with pytest.raises(ValueError, match="it takes kernel_size up to 15, got 17"):
        fi.patch_attention(torch.randn(1, 2, 6, 6), kernel_size=17, backend="native")
    features = torch.randn(1, 2, 6, 6, requires_grad=True)
    output = fi.patch_attention(features, backend="native")
    (gradient,) = torch.autograd.grad(output.sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


@native
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_native_memory_is_linear():
    """128 x 128 pixels and their 4096 keys have 268 MB of scores; forward and backward stay below 64 MiB."""
    script = """
from pathlib import Path
import torch
import fastinpaint as fi
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
torch.set_num_threads(2)
features = torch.randn(1, 4, 128, 128, requires_grad=True)
fi.patch_attention(features[..., :9, :9], backend="native").sum().backward()
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak()
fi.patch_attention(features, backend="native").sum().backward()
print(peak() - before)
"""
    assert float(_run(script)) < 64


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_the_reference_compiles_for_sizes_that_change():
    torch.manual_seed(0)
    compiled = torch.compile(reference.patch_attention, fullgraph=True, dynamic=True)
    for shape in ((2, 4, 12, 16), (3, 4, 20, 14)):
        features = torch.randn(shape, requires_grad=True)
        outputs = compiled(features), reference.patch_attention(features)
        torch.testing.assert_close(*outputs)
        gradients = [torch.autograd.grad(output.square().sum(), features) for output in outputs]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)  # of sums in another order


def test_triton_takes_half_precision_as_it_is(monkeypatch):
    monkeypatch.setattr(_backend, "_triton_gap", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: pytest.fail("a copy in float32"))
    features = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16, device="meta")
    assert fi.patch_attention(features, backend="triton").dtype == torch.bfloat16
