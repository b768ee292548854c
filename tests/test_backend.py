import pickle
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch.autograd import forward_ad

import fastinpaint as fi
from fastinpaint.ops import _backend

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton; it is not installed")


@pytest.fixture(autouse=True)
def _no_default(monkeypatch):
    monkeypatch.delenv("FASTINPAINT_BACKEND", raising=False)
    _backend._announce.cache_clear()


def test_auto_takes_the_best_that_can_serve():
    assert _backend.select("op", "auto", {"native": None, "reference": None}) == "native"


def test_auto_says_once_what_it_passed_over():
    candidates = {"native": "not built", "reference": None}
    with pytest.warns(RuntimeWarning, match=r"fastinpaint\.op runs on its reference backend \(native: not built\)"):
        assert _backend.select("op", "auto", candidates) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backend.select("op", "auto", candidates) == "reference"


def test_named_backend_never_falls_back():
    candidates = {"triton": "no CUDA device", "native": "not built", "reference": None}
    with pytest.raises(ValueError, match=r"'native' cannot serve.*native: not built; triton: no CUDA device"):
        _backend.select("op", "native", candidates)


def test_the_reasons_can_be_read():
    with pytest.raises(fi.BackendUnavailable) as caught:
        _backend.select("op", "native", {"native": "not built", "reference": None, "triton": "no GPU"})
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert error.reasons == {"native": "not built", "triton": "no GPU"}
        assert (error.op, error.backend) == ("op", "native")
        assert "native: not built" in str(error)


def test_backend_that_the_op_lacks():
    with pytest.raises(ValueError, match="op has no such backend"):
        _backend.select("op", "triton", {"reference": None})


def test_unknown_backend_names_the_choices():
    with pytest.raises(ValueError, match=r"backend must be one of auto, triton, native, reference, got 'cuda'"):
        _backend.select("op", "cuda", {"reference": None})


def test_environment_sets_the_default(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "reference")
    assert _backend.select("op", "auto", {"native": None, "reference": None}) == "reference"
    assert _backend.select("op", "native", {"native": None, "reference": None}) == "native"


def test_an_empty_environment_variable_is_none(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "")
    assert _backend.select("op", "auto", {"native": None, "reference": None}) == "native"


def test_environment_default_may_fall_back(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "triton")
    with pytest.warns(RuntimeWarning, match="triton: op has no such backend"):
        assert _backend.select("op", "auto", {"native": None, "reference": None}) == "native"


def test_environment_typo_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTINPAINT_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"FASTINPAINT_BACKEND must be one of .* got 'fast'"):
        _backend.select("op", "auto", {"reference": None})


def test_an_older_extension_lacks_an_operator_and_says_so():
    assert not _backend.has_native("operator_of_tomorrow")
    reason = _backend.native_reason("operator_of_tomorrow", torch.empty(1))
    assert reason is not None
    assert "has no operator_of_tomorrow" in reason or "not built" in reason


def test_native_reason_names_the_device():
    reason = _backend.native_reason("canny", torch.empty(1, device="meta"))
    assert reason is not None
    assert "meta" in reason or "not built" in reason


def test_triton_reason_names_the_device():
    assert _backend.triton_reason(torch.empty(1)) == "it needs CUDA tensors, got cpu tensors"
    mixed = _backend.triton_reason(torch.empty(1), torch.empty(1, device="meta"))
    assert mixed == "tensors lie on different devices"


def test_triton_comes_first_on_a_gpu_and_last_elsewhere():
    gaps = {"triton": None, "native": None}
    assert list(_backend.ranked(torch.device("cuda"), **gaps)) == ["triton", "native", "reference"]
    assert list(_backend.ranked(torch.device("cpu"), **gaps)) == ["native", "reference", "triton"]


def _gaps(asked, **reasons):
    """For each backend what returns its reason, and notes that it was asked."""

    def ask(name):
        asked.append(name)
        return reasons[name]

    return {name: lambda name=name: ask(name) for name in reasons}


@pytest.mark.parametrize(
    ("device", "best", "asked"),
    [("cuda", "triton", ["triton"]), ("cpu", "native", ["native"]), ("meta", "reference", [])],
)
@pytest.mark.parametrize("requested", ["auto", "the best"])
def test_only_the_best_backend_of_a_device_is_asked(device, best, asked, requested):
    found = []
    requested = best if requested == "the best" else requested
    assert _backend.choose("op", requested, torch.device(device), **_gaps(found, triton=None, native=None)) == best
    assert found == asked


def test_all_are_asked_where_the_best_cannot_serve():
    gaps = _gaps([], triton="no GPU", native="not built")
    with pytest.warns(RuntimeWarning, match=r"op runs on its reference backend \(native: not built\)"):
        assert _backend.choose("op", "auto", torch.device("cpu"), **gaps) == "reference"
    with pytest.raises(fi.BackendUnavailable) as caught:
        _backend.choose("op", "triton", torch.device("cpu"), **gaps)
    assert caught.value.reasons == {"native": "not built", "triton": "no GPU"}
    with pytest.raises(fi.BackendUnavailable, match="op has no such backend"):
        _backend.choose("op", "triton", torch.device("cpu"), native=lambda: None)


def test_what_is_named_is_chosen_before_the_best(monkeypatch):
    gaps = _gaps([], triton=None, native=None)
    device = torch.device("cpu")
    assert _backend.choose("op", "triton", device, **gaps) == "triton"
    monkeypatch.setenv("FASTINPAINT_BACKEND", "reference")
    assert _backend.choose("op", "auto", device, **gaps) == "reference"
    with fi.use_backend("triton"):
        assert _backend.choose("op", "auto", device, **gaps) == "triton"
        assert _backend.choose("op", "native", device, **gaps) == "native"
    monkeypatch.setenv("FASTINPAINT_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTINPAINT_BACKEND must be one of"):
        _backend.choose("op", "auto", device, **gaps)


@needs_triton
def test_triton_reason_names_the_dtype(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    gap = _backend._triton_gap.__wrapped__
    cuda = torch.device("cuda")
    assert gap(cuda, (torch.float32, torch.bool)) is None  # bool maps count as bytes
    assert gap(cuda, (torch.float32, torch.float64)) == "it takes float32, bfloat16 and float16, got torch.float64"


FILL = (
    "import torch; fi.canny(torch.rand(1, 3, 16, 16)); "
    "fi.Inpainter(fi.InpaintGenerator(2), 'cpu')(torch.rand(1, 3, 16, 16), torch.eye(16)[None, None] > 0)"
)


@pytest.mark.parametrize(
    ("use", "unwanted"),
    [
        ("", {"torch", "triton", "cv2", "fastinpaint._C", "fastinpaint_kernels"}),
        (FILL, {"torch._dynamo"}),  # importing it takes almost as long as importing torch
    ],
    ids=["nothing", "filling"],
)
def test_no_more_is_imported_than_is_used(use, unwanted):
    code = f"import sys, fastinpaint as fi; {use}\nloaded = {unwanted} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compile_time_constants_are_marked_as_torch_marks_them():
    def ours(): ...
    def theirs(): ...

    assert vars(_backend.compile_time_constant(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}


IMAGE = torch.linspace(-1, 1, 192).view(1, 3, 8, 8).sin()
POINTS = [torch.linspace(-2, 2, 24).view(1, 6, 4).mul(k).cos() for k in (3, 5, 7)]
MAPS = [torch.linspace(-3, 3, 384).view(1, 6, 8, 8).cos(), torch.linspace(-5, 5, 96).view(1, 6, 4, 4).sin()]
EDGES = [IMAGE[:, :1] > 0, IMAGE[:, :1, ::2, ::2] > 0]
FEATURES = torch.linspace(-4, 4, 2048).view(1, 32, 8, 8).sin()
TAPS = torch.linspace(-2, 2, 64 * 32 * 9).view(64, 32, 3, 3).cos() / 17
DIFFERENTIABLE = {
    "sobel_edges": (fi.sobel_edges, [IMAGE]),
    "edge_priority": (fi.edge_priority, [IMAGE[:, :1]]),
    "instance_norm": (lambda x, **options: fi.instance_norm(x, None, None, **options), [IMAGE]),
    "conv2d": (fi.conv2d, [FEATURES, TAPS]),
    "pooled_attention": (fi.pooled_attention, POINTS),
    "patch_attention": (fi.patch_attention, [IMAGE]),
    "pyramid_structure_loss": (
        lambda *maps, **options: fi.pyramid_structure_loss(IMAGE, maps, edges=EDGES, **options),
        MAPS,
    ),
}
KERNELS = sorted(set(DIFFERENTIABLE) - {"instance_norm", "conv2d"})
needs_native = pytest.mark.skipif(_backend.NATIVE_ERROR is not None, reason=str(_backend.NATIVE_ERROR))


def _slope(call, inputs, tangents):
    """The directional derivative, by way of the reference's gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = call(*leaves, backend="reference")
    cotangent = torch.ones_like(output, requires_grad=True)
    backward = torch.autograd.grad(output, leaves, cotangent, create_graph=True)
    return torch.autograd.grad(backward, cotangent, tangents)[0]


@pytest.mark.filterwarnings("ignore:fastinpaint:RuntimeWarning")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_derivatives_are_those_of_the_reference(name):
    call, inputs = DIFFERENTIABLE[name]
    tangents = [x.flip(-1) for x in inputs]
    wanted = _slope(call, inputs, tangents)
    assert wanted.any()
    torch.testing.assert_close(torch.func.jvp(call, tuple(inputs), tuple(tangents))[1], wanted)
    with forward_ad.dual_level():
        output = call(*(forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, wanted)
    first = lambda x: call(x, *inputs[1:])  # noqa: E731
    torch.testing.assert_close(torch.func.jacfwd(first)(inputs[0]), torch.func.jacrev(first)(inputs[0]))


@pytest.mark.filterwarnings("ignore:fastinpaint:RuntimeWarning")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_torch_func_differentiates(name):
    call, inputs = DIFFERENTIABLE[name]
    leaves = [x.clone().requires_grad_() for x in inputs]
    squares = lambda *x, **options: call(*x, **options).square().sum()  # noqa: E731
    wanted = torch.autograd.grad(squares(*leaves, backend="reference"), leaves)
    torch.testing.assert_close(torch.func.grad(squares, tuple(range(len(inputs))))(*inputs), wanted)
    batched = [torch.stack([x, x.flip(-1)]) for x in inputs]
    found = torch.func.vmap(torch.func.grad(squares))(*batched)  # gradients of each sample
    torch.testing.assert_close(found[0], wanted[0])


@needs_native
@pytest.mark.parametrize("name", KERNELS)
def test_a_named_kernel_refuses_what_it_cannot_differentiate(name):
    call, inputs = DIFFERENTIABLE[name]
    native = lambda *x: call(*x, backend="native")  # noqa: E731
    for transform in (
        lambda: torch.func.jvp(native, tuple(inputs), tuple(inputs)),
        lambda: torch.func.jacfwd(native)(*inputs),
        lambda: torch.func.vjp(native, *inputs),
        lambda: torch.func.hessian(lambda *x: native(*x).sum())(*inputs),
    ):
        with pytest.raises(fi.BackendUnavailable, match=r'native: .* take backend="reference"'):
            transform()


@needs_native
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", KERNELS)
def test_vmap_takes_the_kernel(name):
    call, inputs = DIFFERENTIABLE[name]
    batched = [torch.stack([x, x.flip(-1), 2 * x], 1) for x in inputs]
    leaves = [x.requires_grad_() for x in batched]
    found = torch.func.vmap(lambda *x: call(*x, backend="native"), in_dims=1)(*leaves)
    wanted = torch.stack([call(*(x[:, i] for x in leaves), backend="native") for i in range(3)])
    torch.testing.assert_close(found, wanted)
    cotangents = torch.stack([torch.ones_like(found), found.detach()])
    rows = torch.func.vmap(lambda c: torch.autograd.grad(found, leaves, c, retain_graph=True))(cotangents)
    torch.testing.assert_close([row[1] for row in rows], list(torch.autograd.grad(wanted, leaves, cotangents[1])))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
def test_vmap_of_operators_that_return_lists(backend):
    images = torch.stack([IMAGE.repeat(1, 1, 4, 4), -IMAGE.repeat(1, 1, 4, 4).flip(-1)])
    found = torch.func.vmap(lambda image: fi.canny_pyramid(image, backend=backend))(images)
    for i in range(2):
        wanted = fi.canny_pyramid(images[i], backend=backend)
        assert wanted[0].any()
        assert all(torch.equal(maps[i], one) for maps, one in zip(found, wanted, strict=True))


@needs_native
@pytest.mark.parametrize("name", KERNELS)
def test_batched_gradients(name):
    call, inputs = DIFFERENTIABLE[name]

    def rows(x, backend):
        only = lambda first: call(first, *inputs[1:], backend=backend)  # noqa: E731
        return torch.autograd.functional.jacobian(only, x, vectorize=True)

    if name == "pyramid_structure_loss":
        with pytest.raises(RuntimeError, match=r'batched gradients .* take backend="reference"'):
            rows(inputs[0], "native")
    else:
        torch.testing.assert_close(rows(inputs[0], "native"), rows(inputs[0], "reference"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about sparse and nested tensors
@pytest.mark.parametrize("name", [*DIFFERENTIABLE, "canny", "canny_pyramid", "rgb_to_gray"])
def test_tensors_that_are_not_dense_are_refused(name):
    call, inputs = DIFFERENTIABLE.get(name, (getattr(fi, name, None), [IMAGE]))
    for convert, found in (
        (torch.Tensor.to_sparse, "one of layout torch.sparse_coo"),
        (torch.Tensor.to_mkldnn, "one of layout torch._mkldnn"),
        (lambda x: torch.nested.nested_tensor([x[0], x[0]]), "a nested tensor"),
    ):
        with pytest.raises(TypeError, match=f"must be a dense tensor, got {found}"):
            call(*map(convert, inputs))
    with pytest.raises(TypeError, match=r"canny: mask must be a dense tensor, got .*sparse_coo"):
        fi.canny(IMAGE, mask=EDGES[0].to_sparse())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_meta_tensors_give_shapes(name):
    call, inputs = DIFFERENTIABLE[name]
    leaves = [x.to("meta").requires_grad_() for x in inputs]
    edges = [edge_map.to("meta") for edge_map in EDGES]
    if name == "pyramid_structure_loss":
        call = lambda *maps: fi.pyramid_structure_loss(IMAGE.to("meta"), maps, edges=edges)  # noqa: E731
    output = call(*leaves)
    assert output.is_meta
    assert output.shape == DIFFERENTIABLE[name][0](*inputs).shape
    assert all(g.is_meta for g in torch.autograd.grad(output.sum(), leaves))


@pytest.mark.parametrize("option", [{"mode": "nearest"}, {}])
def test_meta_tensors_give_shapes_of_edges(option):
    image = IMAGE.to("meta")
    assert fi.canny(image, **option).shape == (1, 1, 8, 8)
    assert [edges.shape[-1] for edges in fi.canny_pyramid(image)] == [8, 4, 2]
    assert fi.pyramid_structure_loss(image, [x.to("meta") for x in MAPS]).is_meta


NUMBERS = {
    "edge_priority": (lambda **o: fi.edge_priority(FEATURES[:, :1], **o), ("kernel_size", "iterations"), ("sigma",)),
    "patch_attention": (lambda **o: fi.patch_attention(FEATURES, **o), ("kernel_size", "stride"), ("softmax_scale",)),
    "instance_norm": (lambda **o: fi.instance_norm(FEATURES, None, None, **o), ("padding",), ("eps",)),
    "conv2d": (lambda **o: fi.conv2d(FEATURES, TAPS, **o), ("stride", "padding", "dilation"), ()),
    "canny": (lambda **o: fi.canny(FEATURES[:, :1], **o), (), ("sigma", "low_threshold", "high_threshold", "cval")),
    "canny_pyramid": (lambda **o: fi.canny_pyramid(FEATURES[:, :1], **o), (), ("sigma", "low_threshold")),
    "pyramid_structure_loss": (
        lambda **o: fi.pyramid_structure_loss(IMAGE, MAPS, **o),
        (),
        ("sigma", "edge_alpha", "grad_alpha"),
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_options_of_a_wrong_type_are_named(name):
    call, integers, numbers = NUMBERS[name]
    for option in integers:
        for value in (3.0, "3", None, True, torch.tensor(3.0)):
            with pytest.raises(TypeError, match=f"^{name}: {option} must be an integer, got"):
                call(**{option: value})
        for value in (-1, 2**40 + 1):
            if (option, value) != ("stride", 2**40 + 1):
                with pytest.raises(ValueError, match=f"^{name}: {option} must be "):
                    call(**{option: value})
    for option in numbers:
        for value in ("1", [1.0], True, 1j):
            with pytest.raises(TypeError, match=f"^{name}: {option} must be a number, got"):
                call(**{option: value})
        with pytest.raises(ValueError, match=f"^{name}: {option} must be "):
            call(**{option: float("nan")})


@pytest.mark.parametrize("name", ["canny", "canny_pyramid", "pyramid_structure_loss"])
@pytest.mark.parametrize("sigma", [1e6, 1e30, float("inf"), -0.5])
def test_a_sigma_out_of_range_is_named(name, sigma):
    wanted = re.escape(f"{name}: sigma must be at least 0 and less than 1e+06, got {sigma}")
    with pytest.raises(ValueError, match=wanted):
        NUMBERS[name][0](sigma=sigma)


def test_scales_of_a_wrong_type_are_named():
    with pytest.raises(TypeError, match=r"^canny_pyramid: each of scales must be an integer, got 1\.5"):
        fi.canny_pyramid(IMAGE, scales=(1, 1.5))
