"""Operators that are made of Python functions, as those of the Triton kernels are."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from fastinpaint.ops._registration import custom_op, register

CALLS = []


@custom_op("fastinpaint_test::scaled")
def _scaled(x: Tensor, factor: float, offset: int = 0) -> tuple[Tensor, Tensor]:
    CALLS.append(_helper())
    return x * factor + offset, x.sum()[None]


@custom_op("fastinpaint_test::scaled_backward")
def _scaled_backward(grad: Tensor, factor: float) -> Tensor:
    return grad * factor


def _helper():
    """What the operator calls is not compiled either; see ``test_torch_compile_does_not_look_inside``."""
    return torch.ones(1) + 1


def _setup_context(ctx, inputs, output):
    ctx.factor = inputs[1]
    ctx.mark_non_differentiable(output[1])


def _backward(namespace, ctx, grad, _):
    return getattr(torch.ops, namespace).scaled_backward(grad, ctx.factor), None, None


register(
    "fastinpaint_test",
    "scaled",
    fake=lambda x, factor, offset=0: (torch.empty_like(x), x.new_empty(1)),
    setup_context=_setup_context,
    backward=_backward,
    backward_fake=lambda grad, factor: torch.empty_like(grad),
)
RUN = torch.ops.fastinpaint_test.scaled


def test_it_is_what_torch_library_makes():
    theirs = torch.library.custom_op("fastinpaint_test::theirs", _scaled, mutates_args=())._opoverload
    assert str(RUN.default._schema).replace("scaled", "theirs") == str(theirs._schema)
    assert RUN.default.tags == theirs.tags


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_values_gradients_and_shapes(device):
    x = torch.arange(4.0, device=device).requires_grad_()
    scaled, total = RUN(x, 3.0, offset=1)
    (grad,) = torch.autograd.grad(scaled.sum(), x)
    assert (scaled.shape, total.shape, total.requires_grad) == ((4,), (1,), False)
    if device == "cpu":
        assert (scaled.tolist(), grad.tolist()) == ([1.0, 4.0, 7.0, 10.0], [3.0] * 4)


def test_opcheck():
    torch.library.opcheck(RUN.default, (torch.rand(3, requires_grad=True), 2.0))
    torch.library.opcheck(torch.ops.fastinpaint_test.scaled_backward.default, (torch.rand(3), 2.0))


def test_second_derivatives_are_refused():
    x = torch.rand(3, requires_grad=True)
    (grad,) = torch.autograd.grad(RUN(x, 2.0)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'^scaled: .* no second derivatives; use backend="reference"'):
        grad.sum().backward()


def test_vmap():
    x = torch.rand(2, 3)
    assert torch.equal(torch.vmap(lambda row: RUN(row, 2.0)[0])(x), 2 * x)


@contextmanager
def _untraceable():
    torch._dynamo.graph_break()
    yield


def test_torch_compile_does_not_look_inside():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    @torch.compile(backend=backend)
    def left_to_eager_mode(x):
        with _untraceable():
            return RUN(x, 2.0)[0]

    x = torch.rand(3)
    CALLS.clear()
    assert torch.equal(left_to_eager_mode(x), 2 * x)
    assert len(CALLS) == 1
    assert not graphs

    assert torch.equal(torch.compile(lambda x: RUN(x, 2.0)[0] + 1, backend=backend, fullgraph=True)(x), 2 * x + 1)
    assert any(node.target == RUN for node in graphs[0].graph.nodes)


def test_a_call_does_not_import_torch_compile():
    code = (
        "import sys, torch; from tests.test_registration import RUN; "
        "RUN(torch.ones(1, requires_grad=True), 2.0)[0].backward(); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_torch_without_the_private_functions_disables_tracing(monkeypatch):
    monkeypatch.delattr(torch._C._dynamo.eval_frame, "set_code_exec_strategy")
    called = []
    monkeypatch.setattr(torch.compiler, "disable", lambda function: called.append(function) or function)

    @custom_op("fastinpaint_test::doubled")
    def doubled(x: Tensor) -> Tensor:
        return x + x

    assert called == [doubled]
    assert torch.equal(torch.ops.fastinpaint_test.doubled(torch.ones(2)), torch.full((2,), 2.0))
