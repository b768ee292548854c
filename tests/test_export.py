import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import fastinpaint
from fastinpaint.cli import main
from fastinpaint.export import aoti, graphs, write
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models import generator as generator_module
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.ops import _backend
from fastinpaint.reference import canny as reference
from fastinpaint.reference.patch_attention import patch_attention
from tests.helpers.photographs import crops

EXAMPLE = Path(__file__).parent.parent / "docs" / "fill_with_onnx.py"
WITHOUT_PYTHON = EXAMPLE.with_name("fill_without_python.cpp")
ATTENTIONS = ("pooled", "patch")


@pytest.fixture(scope="module", autouse=True)
def _one_residual_block():
    """In place of eight, which are all alike: each takes its time to trace and to convert."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module, "RESIDUAL_BLOCKS", 1)
        yield


def generator(attention, width=2):
    torch.manual_seed(0)
    model = InpaintGenerator(width, attention=attention, head_norm=False, poisson_blend=attention == "patch").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # attention starts with weight 0
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


class Exported(NamedTuple):
    folder: Path
    attention: str
    what: str
    printed: str


CASES = (("pooled", "network"), ("patch", "picture"))  # both attentions, both graphs


def _full_size_alone(self, inputs):
    """A forward pass without the stages at half and quarter size, which "pooled-network" has: a third of the time."""
    x = self.encoder[0](inputs, padding=self.stage_full.attention.padding)
    _, _, image, gradients = self.stage_full(x)
    return fastinpaint.GeneratorOutput((self._blend(image, inputs),) * 3, (gradients,) * 3)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exported(request, tmp_path_factory):
    """What the command writes, with what it prints."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra export")
    attention, what = request.param
    folder = tmp_path_factory.mktemp("exported")
    generator(attention).save_pretrained(folder)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        if what == "picture":
            patch.setattr(InpaintGenerator, "forward", _full_size_alone)
        with contextlib.redirect_stdout(printed):
            assert main(["export", "--model", str(folder), "--output", str(folder), "--graphs", what]) == 0
        yield Exported(folder, attention, what, printed.getvalue())


class TestGraphs:
    @pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (3, 1), (5, 2)])
    def test_patch_attention_is_the_reference(self, kernel_size, stride):
        features = torch.randn(2, 4, 12, 16, dtype=torch.float64)
        wanted = patch_attention(features, kernel_size=kernel_size, stride=stride)
        torch.testing.assert_close(graphs.patch_attention(features, kernel_size, stride), wanted)

    def test_canny_is_the_reference(self):
        picture = torch.from_numpy(np.stack(crops(2, 96))).permute(0, 3, 1, 2) / 255
        valid = torch.ones(2, 1, 96, 96, dtype=torch.bool)
        valid[..., 30:60, 40:70] = False
        edges = reference.canny(picture, mask=valid)
        assert edges.any()
        assert torch.equal(graphs.masked_canny(picture, valid), edges)

    def test_hysteresis_follows_long_paths(self):
        weak = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
        for row in range(2, 62, 4):  # one path of about a thousand pixels
            weak[..., row, 1:63] = True
            weak[..., row : row + 4, 62 if row % 8 == 2 else 1] = True
        strong = torch.zeros_like(weak)
        strong[..., 2, 1] = True
        assert torch.equal(graphs.hysteresis(weak, strong), reference.hysteresis(weak, strong))

    @pytest.mark.parametrize("attention", ATTENTIONS)
    @pytest.mark.parametrize("what", ["network", "picture"])
    def test_graph_is_the_generator(self, attention, what):
        model = generator(attention)
        inputs = write.example_inputs(what, 2, 64, 80)
        found, wanted = write.graph_of(model, what)(*inputs), write.run_generator(model, what, inputs)
        for a, b in zip(found if what == "network" else (found,), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)

    def test_the_hole_is_not_looked_at(self):
        image, mask = write.example_inputs("picture", 1, 64, 64)
        graph = graphs.PictureGraph(generator("pooled"))
        wanted = graph(image, mask)
        other = torch.where(mask > 0.5, 1 - image, image)
        found = graph(other, mask)
        inside = (mask > 0.5).expand_as(image)
        assert torch.equal(found[inside], wanted[inside])
        assert torch.equal(found[~inside], image[~inside])


class TestFiles:
    def test_onnx_at_other_sizes(self, exported):
        folder, attention, what, printed = exported
        checks = write.check_onnx(folder / f"{what}.onnx", generator(attention), what)
        assert len(checks) == 3
        assert all(0 < check.difference <= 1e-4 for check in checks)
        assert "opset 18" in printed
        assert "MiB" in printed
        assert printed.count("ONNX Runtime within") == 3

    def test_a_difference_is_an_error(self, exported):
        folder, attention, what, _ = exported
        other = generator(attention)
        with torch.no_grad():
            other.stage_full.image_head.convolution.bias += 0.1
        with pytest.raises(ValueError, match=r"differs from PyTorch by more than 0.0001"):
            write.check_onnx(folder / f"{what}.onnx", other, what)

    def test_program_is_loaded_at_other_sizes(self, exported):
        folder, attention, what, _ = exported
        program = torch.export.load(folder / f"{what}.pt2").module()
        for size in write.CHECKED:
            inputs = write.example_inputs(what, *size, seed=1)
            found, wanted = program(*inputs), write.run_generator(generator(attention), what, inputs)
            for a, b in zip(found if what == "network" else (found,), wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)

    def test_files_are_not_overwritten_unasked(self, exported, capsys):
        folder = str(exported.folder)
        assert main(["export", "--model", folder, "--output", folder, "--graphs", exported.what]) == 1
        assert "--overwrite" in capsys.readouterr().err

    @pytest.mark.parametrize("exported", CASES[1:2], indirect=True, ids="-".join)
    def test_a_photograph_is_filled_without_torch(self, exported, tmp_path):
        (photo,) = crops(1, 100)
        hole = np.zeros((100, 100), bool)
        hole[20:60, 30:80] = True
        Image.fromarray(photo).save(tmp_path / "photo.png")
        Image.fromarray(hole).save(tmp_path / "mask.png")
        names = ("photo.png", "mask.png", "filled.png")
        arguments = [str(exported.folder / "picture.onnx"), *(str(tmp_path / name) for name in names)]
        code = (
            "import sys, runpy\n"
            "sys.modules['torch'] = sys.modules['fastinpaint'] = None\n"
            f"sys.argv = ['fill'] + {arguments!r}\n"
            f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        filled = np.asarray(Image.open(tmp_path / "filled.png")).astype(int)
        wanted = Inpainter(generator(exported.attention), "cpu")(photo, hole)
        np.testing.assert_array_equal(filled[~hole], photo[~hole])
        assert np.abs(filled - wanted).max() <= 1


NATIVE_OPERATORS = ("canny", "instance_norm", "pooled_attention", "sobel_edges")


class StandIn(nn.Module):
    """As the generator is called, of a convolution, norm and attention: the real one takes minutes to compile."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(11, 8, 3, padding=1, padding_mode="reflect")
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, inputs):
        x = fastinpaint.instance_norm(self.convolution(inputs), None, self.head.bias.new_ones(8), relu=True)
        tokens, pooled = (y.flatten(2).transpose(1, 2) for y in (x, F.max_pool2d(x, 4)))  # (B, N, 8), (B, N / 16, 8)
        attended = fastinpaint.pooled_attention(tokens, pooled, pooled).transpose(1, 2).reshape(x.shape)
        return fastinpaint.GeneratorOutput((self.head(attended).tanh(),) * 3, (attended[:, :6],) * 3)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "picture.aoti.pt2"
    operators = aoti.write_package(StandIn(), path, "picture")
    assert operators == [f"fastinpaint.{name}.default" for name in NATIVE_OPERATORS]
    return path


@pytest.mark.skipif(aoti.NATIVE_ERROR is not None, reason="needs the native kernels")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
class TestPackage:
    def test_calls_the_kernels_at_other_sizes(self, package):
        checks = aoti.check_package(package, StandIn(), "picture")
        assert [(check.batch, check.height, check.width) for check in checks] == list(write.CHECKED)
        assert all(check.difference <= 1e-4 for check in checks)

    def test_a_difference_is_an_error(self, package):
        other = StandIn()
        with torch.no_grad():
            other.head.bias += 0.1
        with pytest.raises(ValueError, match=r"differs from PyTorch by more than 0.0001"):
            aoti.check_package(package, other, "picture", write.CHECKED[:1])

    def test_a_program_without_python_fills(self, package, tmp_path):
        torch_folder, program = Path(torch.__file__).parent, tmp_path / "fill"
        libraries = torch_folder / "lib"
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        subprocess.run(
            ["g++", "-std=c++20", abi, f"-I{torch_folder / 'include'}",
             f"-I{torch_folder / 'include/torch/csrc/api/include'}", str(WITHOUT_PYTHON), "-o", str(program),
             f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", "-ldl"],
            check=True,
        )  # fmt: skip
        size = (3, 48, 80)
        image, mask = write.example_inputs("picture", *size)
        library = Path(fastinpaint.__file__).parent / "_C.abi3.so"
        done = subprocess.run(
            [str(program), str(package), str(library), *map(str, size)],
            input=image.numpy().tobytes() + mask.numpy().tobytes(), capture_output=True, check=True,
        )  # fmt: skip
        filled = torch.from_numpy(np.frombuffer(done.stdout, np.float32).reshape(image.shape).copy())
        (wanted,) = write.run_generator(StandIn(), "picture", (image, mask))
        torch.testing.assert_close(filled, wanted, rtol=0, atol=1e-4)

    def test_without_kernels_there_is_no_package(self, tmp_path, monkeypatch):
        monkeypatch.setattr(aoti, "NATIVE_ERROR", "no compiler was found")
        with pytest.raises(RuntimeError, match="native kernels, which are not there: no compiler was found"):
            aoti.write_package(StandIn(), tmp_path / "a.pt2")


def test_example_is_short():
    lines = [line for line in EXAMPLE.read_text().split('"""', 2)[2].splitlines() if line.strip()]
    assert len(lines) <= 30


def test_generator_itself_can_be_saved(tmp_path):
    model = generator("pooled")
    with fastinpaint.use_backend("reference"):
        program = torch.export.export(model, (torch.rand(1, 11, 32, 32),))
    torch.export.save(program, tmp_path / "model.pt2")
    output = torch.export.load(tmp_path / "model.pt2").module()(torch.rand(1, 11, 32, 32))
    assert type(output) is fastinpaint.GeneratorOutput


class TestUseBackend:
    def test_chooses_for_the_block(self):
        candidates = {"native": None, "reference": None}
        with fastinpaint.use_backend("reference"):
            assert _backend.select("canny", "auto", candidates) == "reference"
            assert _backend.select("canny", "native", candidates) == "native"
            with fastinpaint.use_backend("auto"):
                assert _backend.select("canny", "auto", candidates) == "native"
            assert _backend.select("canny", "auto", candidates) == "reference"
        assert _backend.select("canny", "auto", candidates) == "native"

    def test_is_left_when_the_block_fails(self):
        with pytest.raises(ZeroDivisionError), fastinpaint.use_backend("reference"):
            _ = 1 / 0
        assert _backend.select("canny", "auto", {"native": None, "reference": None}) == "native"

    def test_what_cannot_serve_is_an_error(self):
        with pytest.raises(ValueError, match="name must be one of auto, triton, native, reference, got 'gpu'"):
            fastinpaint.use_backend("gpu").__enter__()
        with fastinpaint.use_backend("triton"), pytest.raises(ValueError, match="cannot serve"):
            fastinpaint.canny(torch.rand(1, 1, 8, 8))
