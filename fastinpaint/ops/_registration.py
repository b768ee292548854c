"""What torch has to know about a custom operator: shapes, gradient, batching."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


@cache  # a library that nothing holds takes its operators with it
def _library(namespace: str) -> torch.library.Library:
    return torch.library.Library(namespace, "FRAGMENT")


def custom_op(name: str) -> Callable[[_Function], _Function]:
    """Make a function of tensors the operator ``name``, ``"namespace::op"``; its annotations are the schema.

    It does what ``torch.library.custom_op`` does, with two layers of Python less between a call and the function. One
    of them would look for results that share memory with an argument or with each other: there must be none.
    """

    def define(function: _Function) -> _Function:
        namespace, op = name.split("::")
        schema = torch.library.infer_schema(function, mutates_args=(), op_name=op)
        _library(namespace).define(schema, tags=torch.Tag.pt2_compliant_tag)
        _library(namespace).impl(op, _untraced(function), "CompositeExplicitAutograd")
        return function

    return define


def _untraced(function: _Function) -> _Function:
    """Let torch.compile run the function, and what it calls, as it is, where a graph break left a call to eager mode.

    ``torch.compiler.disable`` does the same in a wrapper, and imports all of torch.compile: it serves a torch without
    the functions below, which are private.
    """
    try:
        dynamo = torch._C._dynamo.eval_frame
        skip = dynamo._FrameAction.SKIP
        dynamo.set_code_exec_strategy(function.__code__, dynamo._FrameExecStrategy(skip, skip))
    except (AttributeError, TypeError):
        disabled: _Function = torch.compiler.disable(function)
        return disabled
    return function


def register(
    namespace: str,
    op: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward_fake: Callable[..., Any] | None = None,
    backward_of_backward: Callable[..., Any] | None = None,
    setup_backward_context: Callable[..., None] | None = None,
    public_name: str | None = None,
) -> None:
    """Tell torch about ``namespace::op``, and about ``namespace::op_backward`` where its gradient calls that.

    Args:
        namespace: ``"fastinpaint"`` (native) or ``"fastinpaint_triton"``.
        op: Name of the operator.
        fake: Results without values, from its arguments.
        backward: Its gradient: the namespace, the context and the gradients of the results come in.
        setup_context: What the gradient keeps, if anything; see ``torch.library.register_autograd``.
        backward_fake: As ``fake``, of the backward operator; None where there is no such operator.
        backward_of_backward: As ``backward``, of the backward operator; None: second derivatives are an error.
        setup_backward_context: As ``setup_context``, of the backward operator.
        public_name: Name of the operator in messages, where it is not ``op``.
    """
    forward = f"{namespace}::{op}"
    torch.library.register_fake(forward, fake)
    torch.library.register_autograd(forward, partial(backward, namespace), setup_context=setup_context)
    register_vmap(forward)
    if backward_fake is not None:
        second = _no_second_derivative(public_name or op)
        if backward_of_backward is not None:
            second = partial(backward_of_backward, namespace)
        torch.library.register_fake(f"{forward}_backward", backward_fake)
        torch.library.register_autograd(f"{forward}_backward", second, setup_context=setup_backward_context)
        register_vmap(f"{forward}_backward")


def empty_map(like: torch.Tensor, channels: int, larger: int = 0, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised (B, channels, H + larger, W + larger) in the layout and dtype of ``like`` (B, C, H, W)."""
    batch, _, height, width = like.shape
    last = like.stride(1) == 1 and not like.is_contiguous()
    return torch.empty(
        (batch, channels, height + larger, width + larger),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def register_vmap(name: str) -> None:
    """Let vmap call the operator ``name`` once for each entry of the mapped dimension."""
    namespace, op = name.split("::")
    run = getattr(getattr(torch.ops, namespace), op)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, int]:
        results = [run(*_entry(args, in_dims, i)) for i in range(info.batch_size)]
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return type(results[0])(torch.stack(parts) for parts in zip(*results, strict=True)), 0

    torch.library.register_vmap(name, rule)


def _entry(value: Any, dims: Any, index: int) -> Any:
    """Arguments with entry ``index`` of each tensor's mapped dimension, None where it has none."""
    if dims is None:
        return value
    if isinstance(value, Sequence):
        return [_entry(v, d, index) for v, d in zip(value, dims, strict=True)]
    return value.select(dims, index)


def _no_second_derivative(op: str) -> Callable[..., None]:
    """Make the autograd formula of a backward operator that has no gradient itself."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f'{op}: the triton and native backends have no second derivatives; use backend="reference"')

    return refuse
