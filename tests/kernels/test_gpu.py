"""What only a GPU can show: the compiled Triton kernels through the public operators."""

from functools import partial

import pytest
import torch

import fastinpaint as fi
from tests.golden_data import relative_error

pytestmark = pytest.mark.gpu

# float32: three TensorFloat-32 products in place of one (pooled attention), or float32 sums in another order. Half
# precision: attention weights and their gradients are rounded between products.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
OPS = ("pooled_attention", "patch_attention", "structure_loss", "instance_norm", "instance_norm channels-last")
OPS += ("structure_loss channels-last", "sobel_edges", "sobel_edges channels-last", "edge_priority")


def _case(op, device, dtype=torch.float32, large=False):
    """Function of (leaves, backend), and leaves."""
    if op == "pooled_attention":
        rows = (16384, 4096, 4096) if large else (700, 301, 301)
        leaves = [torch.randn(2, n, 4 if large else 8, device=device).to(dtype) for n in rows]
        return lambda leaves, backend: fi.pooled_attention(*leaves, backend=backend), leaves
    if op == "patch_attention":
        shape = (2, 64, 64, 64) if large else (2, 24, 13, 18)
        return lambda leaves, backend: fi.patch_attention(*leaves, backend=backend), [
            (torch.randn(shape, device=device) / 8).to(dtype)
        ]
    if op.startswith("instance_norm"):
        return _instance_norm_case(op, device, dtype, (2, 64, 256, 256) if large else (2, 24, 13, 18))
    layout = torch.channels_last if op.endswith("channels-last") else torch.contiguous_format
    if op.startswith("sobel_edges") or op == "edge_priority":
        image = torch.rand((2, 1 if op == "edge_priority" else 3, *((256, 192) if large else (19, 70))), device=device)
        run = fi.edge_priority if op == "edge_priority" else fi.sobel_edges
        return lambda leaves, backend: run(*leaves, backend=backend), [image.to(dtype).to(memory_format=layout)]
    sides = (256, 128, 64) if large else (50, 37, 11)
    image = torch.rand(2, 3, sides[0], sides[0], device=device) * 2 - 1
    edges = [torch.rand(2, 1, s, s, device=device) < 0.1 for s in sides]
    leaves = [torch.randn(2, 6, s, s, device=device).to(dtype).to(memory_format=layout) for s in sides]

    def loss(leaves, backend):  # large enough to keep float16 gradients normal
        target = image.double() if backend == "reference" else image
        return 1e4 * fi.pyramid_structure_loss(target, leaves, edges=edges, backend=backend)

    return loss, leaves


def _instance_norm_case(op, device, dtype, shape):
    last = op.endswith("channels-last")
    layout = torch.channels_last if last else torch.contiguous_format
    x, residual = (torch.randn(shape, device=device).to(dtype).to(memory_format=layout) for _ in range(2))
    weight, bias = (torch.randn(shape[1], device=device).to(dtype) for _ in range(2))

    def norm(leaves, backend):
        extras = {"residual": leaves[3], "scale": leaves[1][:1], "padding": 2} if last else {"padding": 1}
        # A sixteenth: the weight's gradient is a sum over all pixels, which float16 must hold.
        return fi.instance_norm(*leaves[:3], relu=True, backend=backend, **extras) / 16

    return norm, [x, weight, bias, residual][: 4 if last else 3]


def _run(function, leaves, backend="triton"):
    """Output and gradients for one fixed gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    output = function(leaves, backend)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).reshape(output.shape).to(output.dtype)
    return output.detach(), *torch.autograd.grad(output, leaves, weight)


def _truth(function, leaves):
    """The same through the reference in float64, where no TensorFloat-32 and no fast convolution rounds."""
    return _run(function, [x.double() for x in leaves], "reference")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("op", OPS)
def test_parity_and_gradients(op, dtype, large, cuda, poisoned_memory):
    function, leaves = _case(op, cuda, dtype, large)
    found = _run(function, leaves)
    # A tie of prediction and target may go either way in the structure loss, and so may a ReLU's argument near 0.
    slack = 0 if op.endswith("attention") else 1e-3
    for result, expected in zip(found, _truth(function, leaves), strict=True):
        assert relative_error(result.double(), expected) <= TOLERANCE[dtype] + slack


@pytest.mark.parametrize("op", OPS)
def test_compiles_whole(op, cuda):
    function, leaves = _case(op, cuda)
    compiled = torch.compile(partial(function, backend="triton"), fullgraph=True)
    for result, expected in zip(_run(lambda leaves, _: compiled(leaves), leaves), _run(function, leaves), strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("op", OPS)
def test_every_run_gives_the_same_bits(op, cuda):
    function, leaves = _case(op, cuda, large=True)
    first = _run(function, leaves)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, _run(function, leaves), strict=True))


@pytest.mark.parametrize("op", OPS)
def test_graph_capture(op, cuda):
    function, leaves = _case(op, cuda)
    static = [x.clone() for x in leaves]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _run(function, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _run(function, static)
    for place, fresh in zip(static, leaves, strict=True):
        place.copy_(fresh.flip(-1))
    graph.replay()
    for result, expected in zip(captured, _run(function, static), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_current_stream(op, cuda):
    function, leaves = _case(op, cuda)
    expected = _run(function, leaves)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # work on another stream would overtake this copy
        late = [x.clone() for x in leaves]
        found = _run(function, late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_tensors_device(op, cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices; torch sees one")
    function, leaves = _case(op, torch.device("cuda:1"))
    for result, expected in zip(_run(function, leaves), _truth(function, leaves), strict=True):
        assert result.device == leaves[0].device
        assert relative_error(result.double(), expected) <= 2e-3


@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_nothing(op, cuda):
    function, leaves = _case(op, cuda)
    expected = _run(function, leaves)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(_run(function, leaves), expected, strict=True))


def test_auto_prefers_triton(cuda, recwarn):
    function, leaves = _case("pooled_attention", cuda)
    assert torch.equal(_run(function, leaves, "auto")[0], _run(function, leaves, "triton")[0])
    assert not [w for w in recwarn if "passed over" in str(w.message) or "runs on its" in str(w.message)]


def _need_memory(gibibytes):
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gibibytes:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory; {free:.0f} are free")


def test_offsets_beyond_2_31_in_pooled_attention(cuda):
    _need_memory(16)
    batch, queries, width = 34, 2**20, 64  # 2.3e9 elements
    query = torch.randn(1, queries, width, device=cuda, dtype=torch.bfloat16).repeat(batch, 1, 1)
    key, value = (torch.randn(1, 16, width, device=cuda, dtype=torch.bfloat16).repeat(batch, 1, 1) for _ in range(2))
    output = fi.pooled_attention(query, key, value, backend="triton")
    assert torch.equal(output[-1], output[0])
    alone = fi.pooled_attention(query[:1], key[:1], value[:1], backend="triton")
    assert relative_error(output[0].float(), alone[0].float()) <= 1e-6


def test_offsets_beyond_2_31_in_the_structure_loss(cuda):
    _need_memory(28)
    batch, side = 64, 2400  # 2.2e9 elements
    image = torch.rand(1, 3, side, side, device=cuda).half()
    prediction = torch.randn(1, 6, side, side, device=cuda).half()
    edges = torch.rand(1, 1, side, side, device=cuda) < 0.1
    one = fi.pyramid_structure_loss(image, [prediction], edges=[edges], backend="triton")
    many = prediction.repeat(batch, 1, 1, 1).requires_grad_()
    images, maps = image.expand(batch, -1, -1, -1), edges.expand(batch, -1, -1, -1)
    loss = fi.pyramid_structure_loss(images, [many], edges=[maps], backend="triton")
    assert loss.item() == pytest.approx(one.item(), rel=1e-4)
    (1e6 * loss).backward()
    assert torch.equal(many.grad[-1], many.grad[0])
    assert many.grad[0].any()
