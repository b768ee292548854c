"""Image gradients against eager PyTorch, torch.compile and OpenCV."""

from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run, differentiated, gap_of
from fastinpaint.ops.sobel_edges import sobel_edges


def cases(device: str) -> list[Case]:
    sizes = {"cpu": ((8, 64), (8, 256), (8, 1024)), "cuda": ((16, 256),), "dry": ((1, 16),)}[device]
    return [_case(*size, backward) for backward in (False, True) for size in sizes]


def _case(batch: int, side: int, backward: bool) -> Case:
    passes = "forward + backward" if backward else "forward"
    values = batch * 9 * side**2  # three channels in, six out
    return Case(
        f"{batch} x 3 x {side}², {passes}",
        {"batch": batch, "side": side, "backward": backward},
        Work(bytes=4 * values * (2 if backward else 1), flops=12 * 3 * batch * side**2),
        items=batch,
        series=passes,
        size=side,
    )


def competitors(device: str, batch: int, side: int, backward: bool) -> Competitors:
    """Name to a call for the gradients and, with ``backward``, their gradient."""
    image = torch.rand(batch, 3, side, side, device=device, requires_grad=backward)
    compiled = torch.compile(sobel_edges, dynamic=False)
    ours = "native" if device == "cpu" else "triton"
    values = {
        ours: lambda: sobel_edges(image, backend=ours),
        "eager": lambda: sobel_edges(image, backend="reference"),
        "torch.compile": lambda: compiled(image, backend="reference"),
    }
    calls: dict[str, Run | str] = {name: differentiated(value, [image], backward) for name, value in values.items()}
    gap = gap_of(values[ours])
    if gap is not None:
        calls[ours] = gap
    if device == "cpu":
        calls["OpenCV"] = "it has no backward" if backward else _opencv(image)
    return calls


def _opencv(image: Tensor) -> Run | str:
    if find_spec("cv2") is None:
        return "OpenCV is not installed"
    import cv2

    planes = image.flatten(0, 1).numpy()

    def run() -> Tensor:
        result = torch.empty(len(planes), 2, *planes.shape[1:])
        for plane, (dy, dx) in zip(planes, result.numpy(), strict=True):
            cv2.Sobel(plane, cv2.CV_32F, 0, 1, dst=dy, borderType=cv2.BORDER_REFLECT_101)
            cv2.Sobel(plane, cv2.CV_32F, 1, 0, dst=dx, borderType=cv2.BORDER_REFLECT_101)
        return result.view(image.shape[0], 6, *image.shape[2:])

    return run


BENCHMARK = Benchmark(
    title="Sobel gradients of three channels: per image",
    cases=cases,
    competitors=competitors,
    reference=("eager",),
    tolerance=lambda *_, **__: 1e-5,
)
