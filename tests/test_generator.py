import json

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fastinpaint.models.from_tensorflow import generator_from_tf
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_input
from fastinpaint.ops.canny import canny
from fastinpaint.reference import instance_norm as norm_reference
from tests.golden_data import golden, golden_variables, nchw, relative_error
from tests.helpers.tolerances import TOLERANCES

PLAIN_NORM = norm_reference.instance_norm


def random_input(height=32, width=48, batch=2):
    image = torch.rand(batch, 3, height, width) * 2 - 1
    mask = torch.zeros(1, 1, height, width)
    mask[..., 4:14, 6:20] = 1
    return assemble_input(image, mask, torch.zeros(batch, 1, height, width))


def flat(output):
    return torch.cat([part.flatten() for part in (*output.images, *output.gradients)])


def test_outputs_at_all_scales_against_the_original():
    arrays = golden("generator_w16")
    image, mask, edges = (nchw(arrays[name]) for name in ("image", "mask", "edge"))
    inputs = assemble_input(image, mask, edges)
    assert relative_error(inputs[:, 5:], nchw(arrays["gradient"]) * (1 - mask)) < TOLERANCES["input"]
    with torch.no_grad():
        output = generator_from_tf(golden_variables())(inputs)
    for scale, found_image, found_gradient in zip(("full", "half", "quarter"), *output, strict=True):
        assert relative_error(found_image, nchw(arrays[f"image_{scale}"])) < TOLERANCES["generator"]
        assert relative_error(found_gradient, nchw(arrays[f"gradient_{scale}"])) < TOLERANCES["generator"]


def test_original_width_has_the_original_number_of_parameters():
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in InpaintGenerator().parameters())
    assert count == 15_089_000


@pytest.mark.parametrize("attention", ["pooled", "patch"])
@pytest.mark.parametrize(("width", "size"), [(1, (16, 16)), (3, (16, 48)), (8, (64, 32))])
def test_any_width_and_any_size_divisible_by_16(attention, width, size):
    generator = InpaintGenerator(width, attention, head_norm=False)
    images, gradients = generator(random_input(*size))
    for divisor, image, gradient in zip((1, 2, 4), images, gradients, strict=True):
        assert image.shape == (2, 3, size[0] // divisor, size[1] // divisor)
        assert gradient.shape == (2, 6, size[0] // divisor, size[1] // divisor)
        assert image.abs().max() <= 1


def test_head_norm_pins_the_mean_and_its_absence_frees_it():
    inputs = random_input()
    pinned = torch.atanh(InpaintGenerator(4)(inputs).images[0].double()).mean((2, 3))
    free = torch.atanh(InpaintGenerator(4, head_norm=False)(inputs).images[0].double()).mean((2, 3))
    assert pinned.abs().max() < 1e-4
    assert free.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 11, 40, 32), "divisible by 16, got 40 x 32"),
        ((1, 11, 0, 32), "divisible by 16, got 0 x 32"),
        ((1, 10, 32, 32), r"\(B, 11, H, W\), got \(1, 10, 32, 32\)"),
        ((11, 32, 32), r"\(B, 11, H, W\)"),
    ],
)
def test_wrong_inputs_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        InpaintGenerator(1)(torch.zeros(shape))


@pytest.mark.parametrize("options", [{"base_channels": 0}, {"attention": "dot"}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        InpaintGenerator(**options)


@pytest.mark.parametrize("attention", ["pooled", "patch"])
def test_channels_last_and_autocast_agree_with_plain_float32(attention):
    generator, inputs = InpaintGenerator(8, attention).eval(), random_input()
    for stage in (generator.stage_quarter, generator.stage_half, generator.stage_full):
        torch.nn.init.ones_(stage.attention.gamma)
    with torch.no_grad():
        wanted = flat(generator(inputs))
        # Sums in another order; through patch attention's steep softmax they grow.
        channels_last = generator.to(memory_format=torch.channels_last)
        assert relative_error(flat(channels_last(inputs.to(memory_format=torch.channels_last))), wanted) < 1e-3
        with torch.autocast("cpu", torch.bfloat16):
            narrow = flat(generator(inputs)).float()
    assert relative_error(narrow, wanted) < 0.2  # bfloat16 carries 8 bits through 40 layers
    assert narrow.isfinite().all()


class _OtherLayouts(TorchDispatchMode):
    """Collects operators that return a map of several channels in another layout than channels-last."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        copies = name in ("clone", "copy_", "contiguous", "_to_copy")
        if isinstance(out, torch.Tensor) and out.dim() == 4 and out.shape[1] > 1 and (copies or out.stride(1) != 1):
            self.found.append((name, tuple(out.shape), out.stride()))
        return out


def test_channels_last_maps_stay_so_without_copies():
    generator = InpaintGenerator(32).to(memory_format=torch.channels_last)
    inputs = random_input().to(memory_format=torch.channels_last)
    with _OtherLayouts() as layouts:
        output = generator(inputs)
    assert not layouts.found
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in (*output.images, *output.gradients))


class _NormOfOneOperator(torch.autograd.Function):
    """The norm as it is on a GPU: no operators within, gradients in the layout of what they belong to."""

    @staticmethod
    def forward(ctx, *arguments):
        ctx.leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
        with torch.enable_grad():
            ctx.output = PLAIN_NORM(*ctx.leaves)
        return ctx.output.detach()

    @staticmethod
    def backward(ctx, grad):
        assert grad.stride(1) == 1, f"the norm would copy a gradient of strides {grad.stride()}"
        with _disable_current_modes():
            tensors = [leaf for leaf in ctx.leaves if isinstance(leaf, torch.Tensor)]
            found = iter(torch.autograd.grad(ctx.output, tensors, grad))
            grads = [next(found) if isinstance(leaf, torch.Tensor) else None for leaf in ctx.leaves]
            last = torch.channels_last
            return tuple(g.contiguous(memory_format=last) if g is not None and g.dim() == 4 else g for g in grads)


def test_gradients_of_channels_last_maps_stay_so(monkeypatch):
    generator = InpaintGenerator(32).to(memory_format=torch.channels_last)
    monkeypatch.setattr(norm_reference, "instance_norm", _NormOfOneOperator.apply)
    output = generator(random_input().to(memory_format=torch.channels_last))
    parts = [*output.images, *output.gradients]
    with _OtherLayouts() as layouts:
        torch.autograd.backward(parts, [torch.ones_like(part) for part in parts])
    assert not layouts.found


def test_bfloat16_autocast_trains():
    generator = InpaintGenerator(4)
    with torch.autocast("cpu", torch.bfloat16):
        output = generator(random_input())
    flat(output).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


def test_traces_into_one_graph_and_exports():
    generator, inputs = InpaintGenerator(2).eval(), random_input(32, 32)
    traced = torch.compile(generator, backend="eager", fullgraph=True)
    exported = torch.export.export(generator, (inputs,)).module()
    with torch.no_grad():
        wanted = flat(generator(inputs))
        assert torch.allclose(flat(traced(inputs)), wanted, atol=1e-6)
        assert torch.allclose(flat(exported(inputs)), wanted, atol=1e-6)


def one_block(attention="pooled"):
    """A generator that is traced quickly."""
    generator = InpaintGenerator(1, attention, head_norm=False).eval()
    generator.blocks = generator.blocks[:1]
    return generator


@pytest.mark.parametrize(
    "sizes",
    [
        [(batch, 32, 32) for batch in (1, 2, 3, 4, 6, 8)],
        [(2, 32, 32), (2, 48, 32), (2, 64, 64), (2, 32, 80), (2, 96, 48), (2, 112, 112)],
    ],
    ids=["batch sizes", "picture sizes"],
)
def test_is_compiled_anew_at_most_twice(sizes):
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(one_block(), backend=counter, fullgraph=True)
    with torch.no_grad():
        for batch, height, width in sizes:
            assert compiled(torch.rand(batch, 11, height, width)).images[0].shape == (batch, 3, height, width)
    assert counter.frame_count <= 3


def test_exports_with_symbolic_sizes(tmp_path):
    generator = one_block()
    sizes = {0: Dim("batch", min=1, max=64), 2: 16 * Dim("rows", min=2, max=64), 3: 16 * Dim("columns", min=2, max=64)}
    program = torch.export.export(generator, (random_input(32, 48),), dynamic_shapes=(sizes,), strict=True)
    torch.export.save(program, tmp_path / "generator.pt2")
    inputs = random_input(64, 32, batch=3)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "generator.pt2").module()(inputs)
        assert torch.allclose(flat(found), flat(generator(inputs)), atol=1e-5)


def test_pretrained_round_trip(tmp_path):
    generator, inputs = InpaintGenerator(3, "patch", head_norm=False).eval(), random_input()
    generator.save_pretrained(tmp_path / "model")
    loaded = InpaintGenerator.from_pretrained(tmp_path / "model")
    assert loaded.config == generator.config
    assert not loaded.training
    assert torch.equal(flat(loaded(inputs)), flat(generator(inputs)))


def test_pretrained_folders_of_other_models_are_refused(tmp_path):
    InpaintGenerator(2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"model": "PatchDiscriminator"}, "'InpaintGenerator', got 'PatchDiscriminator'"),
        ({"base_channels": 4}, "does not fit"),
        ({"depth": 3}, "depth"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=message):
            InpaintGenerator.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        InpaintGenerator.from_pretrained(tmp_path)


def test_input_channels():
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:8, 4:8] = 1
    edges = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    edges[..., 6, :] = True
    inputs = assemble_input(image, mask, edges)
    assert torch.equal(inputs[:, :3], image * (1 - mask))
    assert (inputs[:, 3, 6, :4] == 0).all()
    assert (inputs[:, 3, 6, 4:8] == 1).all()
    assert (inputs[:, 3, 5] == 1).all()
    assert torch.equal(inputs[:, 4:5], mask)
    assert (inputs[:, 5:, 4:8, 4:8] == 0).all()


def test_input_without_edges_runs_canny_on_the_unit_range_and_a_shared_mask_is_spread():
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, size=(48, 32))
    mask = torch.zeros(1, 1, 48, 32)
    found = assemble_input(image, mask)
    edges = canny((image + 1) / 2, sigma=1.5)
    assert edges.any()
    assert torch.equal(found, assemble_input(image, mask.expand(2, -1, -1, -1), edges))


@pytest.mark.parametrize(
    ("image", "mask", "error"),
    [
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, 1, 16, 16), TypeError),
        (torch.zeros(2, 4, 16, 16), torch.zeros(2, 1, 16, 16), ValueError),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 8), ValueError),
        (torch.zeros(2, 3, 16, 16), torch.zeros(3, 1, 16, 16), ValueError),
    ],
)
def test_wrong_input_parts_are_named(image, mask, error):
    with pytest.raises(error, match="must be"):
        assemble_input(image, mask)
