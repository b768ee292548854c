import errno
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastinpaint
from fastinpaint.cli import COMMANDS, main
from fastinpaint.errors import one_line
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models import pretrained
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.training.config import TrainConfig
from tests.golden_data import CHECKPOINT, golden, nchw, relative_error


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    InpaintGenerator(2, head_norm=False).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    hole = np.zeros((32, 48), np.uint8)
    hole[8:20, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(hole).save(tmp_path / "mask.png")
    return tmp_path


def test_help_needs_no_torch():
    code = (
        "import sys, fastinpaint.cli\n"
        "try: fastinpaint.cli.main(['--help'])\n"
        "except SystemExit as error: assert not error.code\n"
        "assert not {'torch', 'numpy', 'cv2', 'yaml'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(name in found.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: fastinpaint " + command in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert fastinpaint.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fill"], "invalid choice: 'fill'"),
        (["inpaint"], "required: --image, --mask, --output"),
        (["masks", "--output", "m", "--count", "none"], "argument --count: invalid int value: 'none'"),
        (["demo", "--seconds", "0"], "argument --seconds: must be above 0"),
        (["train", "--learning-rat", "1"], "unrecognized arguments: --learning-rat 1"),
    ],
)
def test_wrong_arguments_exit_with_2_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fastinpaint")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "option data is required"),
        (["train", "--data", "absent", "--batch-size", "two"], "option batch_size must be int, got 'two'"),
        (["train", "--data", "absent", "--batch_size", "two"], "option batch_size must be int, got 'two'"),
        (["train", "--losses.gradient_penalty=a_b"], "option losses.gradient_penalty must be float, got 'a_b'"),
        (["evaluate", "--data", "absent", "--per_image=1", "--model", "m", "--output", "o"], "absent"),
        (["train", "--data", "absent", "--losses.style=-1"], "loss weight style must be at least 0"),
        (["train", "--config", "absent.yaml"], "no configuration file at absent.yaml"),
        (["inpaint", "--model", "absent", "--image", "a", "--mask", "b", "--output", "c"], "absent"),
        (
            ["inpaint", "--model", "huge", "--image", "a", "--mask", "b", "--output", "c"],
            "no shipped model of this name",
        ),
        (["convert", "absent", "out"], "absent"),
        (["train", "--data", ".", "--output", "../o", "--device", "nowhere"], "device nowhere cannot be used"),
        (
            ["train", "--data", ".", "--output", "../o", "--device", "meta"],
            "device meta cannot be used: it computes no values",
        ),
        (
            ["evaluate", "--data", ".", "--model", "small", "--output", "../o", "--device", "nowhere"],
            "device nowhere c",
        ),
        (["train", "--data", "absent", "--validation", ".", "--output", "run"], "the output run lies in the folder ."),
        (
            ["train", "--data", "absent", "--masks.source", ".", "--output", "run"],
            "the output run lies in the folder .",
        ),
        (["demo", "--data", "."], "the output demo lies in the folder ."),
        (
            ["evaluate", "--truth", "absent", "--results", ".", "--output", "o"],
            "the output o lies in the folder ., which would be read again",
        ),
        (["demo", "--device", "mps:9"], "device mps:9 cannot be used"),
    ],
)
def test_errors_of_users_are_one_line_without_a_trace(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastinpaint: error: ")
    assert error.count("\n") == 1
    assert message in error


def failing(monkeypatch, error):
    def run(options):
        raise error

    monkeypatch.setattr(COMMANDS["info"], "run", run)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("wanted\n  this"), "wanted this"),
        (OSError(28, "No space left on device", "out.png"), "out.png: No space left on device"),
        (
            AssertionError("Torch not compiled with CUDA enabled"),
            "AssertionError: Torch not compiled with CUDA enabled",
        ),
        (TypeError("f() takes 1 positional argument"), "TypeError: f() takes 1 positional argument"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_any_error_is_one_line_and_a_bug_hints_at_its_traceback(error, line, monkeypatch, capsys):
    failing(monkeypatch, error)
    assert main(["info"]) == 1
    hint = "" if isinstance(error, ValueError | OSError) else " (--debug shows where)"
    assert capsys.readouterr().err == f"fastinpaint: error: {line}{hint}\n"


@pytest.mark.parametrize("arguments", [["--debug", "info"], ["info", "--debug"]])
def test_debug_shows_the_traceback(arguments, monkeypatch, capsys):
    failing(monkeypatch, ValueError("wanted this"))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.endswith("fastinpaint: error: wanted this\n")


class _Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError(f"{index}.png cannot be read:\n  it is damaged")


def test_errors_of_data_workers_lose_their_traceback():
    with pytest.raises(ValueError, match="Traceback") as found:
        next(iter(torch.utils.data.DataLoader(_Unreadable(), num_workers=1)))
    assert one_line(found.value).endswith("it is damaged")
    assert "Traceback" not in one_line(found.value)
    assert "File" not in one_line(found.value)


def run_in_shell(command, **environment):
    python = f"{sys.executable} -m fastinpaint"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("fastinpaint", python)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered):
    found = run_in_shell("fastinpaint train --print-config | true", PYTHONUNBUFFERED=unbuffered)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(("closed", "code"), [("--version >&- 2>&-", 0), ("--nothing 2>&-", 2)])
def test_streams_may_be_closed(closed, code):
    command = f"{sys.executable} -m fastinpaint {closed}"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode == code
    assert "Traceback" not in found.stderr


def test_ascii_terminal(tmp_path):
    folder = tmp_path / "Bücher"
    found = run_in_shell(f"fastinpaint masks --count 1 --size 16 16 --output {folder}", PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stderr) == (0, "")
    assert "B\\xfccher" in found.stdout
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_leave_no_temporary_file(name, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fastinpaint.cli import COMMANDS, main\n"
        "from fastinpaint.files import atomic_write\n"
        "def run(options):\n"
        "    with atomic_write('out.txt') as temporary:\n"
        "        temporary.write_text('half')\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "COMMANDS['info'].run = run\n"
        "sys.exit(main(['info']))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert found.returncode == 128 + signal.Signals[name]
    assert not list(tmp_path.iterdir())


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(COMMANDS["info"], "run", lambda options: signal.raise_signal(signal.SIGHUP) or 0)
        assert main(["info"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class TestTrain:
    def test_printed_config_is_read_back(self, tmp_path, capsys):
        assert main(["train", "--print-config", "--masks.brush-width", "[3, 5]", "--learning-rate", "1e-4"]) == 0
        path = tmp_path / "options.yaml"
        path.write_text(capsys.readouterr().out)
        config = TrainConfig.from_yaml(path)
        assert config.masks.brush_width == (3, 5)
        assert config.learning_rate == 1e-4
        assert config.steps == TrainConfig().steps

    def test_flags_come_on_top_of_the_file(self, photo, capsys):
        (photo / "options.yaml").write_text(
            f"data: {photo / 'photo.png'}\noutput: {photo / 'run'}\nimage_size: 32\nbase_channels: 2\nsteps: 900\n"
            "losses: {adversarial: 0, content: 0, style: 0}\ndevice: cpu\nworkers: 0\n"
        )
        arguments = ["train", "--config", str(photo / "options.yaml"), "--batch-size", "1"]
        assert main([*arguments, "--steps", "1"]) == 0
        assert str(photo / "run" / "model") in capsys.readouterr().out
        InpaintGenerator.from_pretrained(photo / "run" / "model")
        assert main([*arguments, "--steps", "2"]) == 1
        assert "--resume" in capsys.readouterr().err
        assert main([*arguments, "--steps", "2", "--resume"]) == 0


# Each makes one bad input in a folder with photo.png and mask.png, and returns what changes in the arguments, and what
# the line must say.
def truncated_jpeg(folder, model, monkeypatch):
    Image.open(folder / "photo.png").save(folder / "bad.jpg")
    (folder / "bad.jpg").write_bytes((folder / "bad.jpg").read_bytes()[:-300])
    return {"image": folder / "bad.jpg"}, "bad.jpg cannot be read as an image: image file is truncated"


def no_bytes(folder, model, monkeypatch):
    (folder / "bad.png").touch()
    return {"image": folder / "bad.png"}, "bad.png cannot be read as an image: "


def text(folder, model, monkeypatch):
    (folder / "bad.png").write_text("no picture at all")
    return {"image": folder / "bad.png"}, "bad.png cannot be read as an image: "


def missing(folder, model, monkeypatch):
    return {"image": folder / "bad.png"}, f"no file or folder at {folder / 'bad.png'}"


def bomb(folder, model, monkeypatch):
    header = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    packed = (len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return {"image": folder / "bad.png"}, "could be decompression bomb"


def pipe(folder, model, monkeypatch):
    os.mkfifo(folder / "bad.png")
    return {"image": folder / "bad.png"}, "is a pipe"


def mask_of_another_size(folder, model, monkeypatch):
    Image.fromarray(np.eye(30, 48, dtype=np.uint8) * 255).save(folder / "bad.png")
    return {"mask": folder / "bad.png"}, "must have the image's width and height 48x32, got 48x30"


def empty_mask(folder, model, monkeypatch):
    Image.new("L", (48, 32), 76).save(folder / "bad.png")
    return {"mask": folder / "bad.png"}, "bad.png marks no hole: its values are 76 to 76"


def mask_that_is_the_image(folder, model, monkeypatch):
    return {"mask": folder / "photo.png"}, "the image and the mask are the same"


def folder_as_output(folder, model, monkeypatch):
    (folder / "folder").mkdir()
    return {"output": folder / "folder"}, "one image wants an output file"


def unknown_format(folder, model, monkeypatch):
    return {"output": folder / "filled.psd"}, "filled.psd has none of the suffixes"


def format_without_alpha(folder, model, monkeypatch):
    Image.open(folder / "photo.png").convert("LA").save(folder / "bad.png")
    return {"image": folder / "bad.png", "output": folder / "filled.bmp"}, "BMP cannot hold LA pixels"


def refuse_writing(monkeypatch, number):
    def refuse(path, content):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    return {}, f"filled.png: {os.strerror(number)}"


def no_permission(folder, model, monkeypatch):
    return refuse_writing(monkeypatch, errno.EACCES)


def disk_full(folder, model, monkeypatch):
    return refuse_writing(monkeypatch, errno.ENOSPC)


def checkpoint_of_another_width(folder, model, monkeypatch):
    InpaintGenerator(4, head_norm=False).save_pretrained(folder / "wide")
    (folder / "wide" / "model.safetensors").replace(model / "model.safetensors")
    return {}, "does not fit InpaintGenerator"


def damaged_model(folder, model, monkeypatch):
    (model / "model.safetensors").write_bytes(b"\xff" * 100)
    return {}, "model.safetensors is not a complete safetensors file"


def weights_of_nan(folder, model, monkeypatch):
    generator = InpaintGenerator(2, head_norm=False)
    with torch.no_grad():
        next(generator.parameters()).fill_(float("nan"))
    generator.save_pretrained(model)
    return {}, "NaN"


def no_such_device(folder, model, monkeypatch):
    return {"device": "nowhere"}, "device nowhere cannot be used"


BAD = [
    truncated_jpeg, no_bytes, text, missing, bomb, pipe, mask_of_another_size, empty_mask, mask_that_is_the_image,
    folder_as_output, unknown_format, format_without_alpha, no_permission, disk_full, checkpoint_of_another_width,
    damaged_model, weights_of_nan, no_such_device,
]  # fmt: skip


class TestInpaint:
    def arguments(self, model, folder, **changes):
        names = {"model": model, "image": folder / "photo.png", "mask": folder / "mask.png"}
        names |= {"output": folder / "filled.png"} | changes
        names = {"device": "cpu"} | names
        return ["inpaint", *(str(v) for k, value in names.items() for v in (f"--{k}", value))]

    def test_file(self, model, photo, capsys):
        assert main(self.arguments(model, photo)) == 0
        assert "1 written, 0 failed" in capsys.readouterr().out
        before, after, mask = (np.asarray(Image.open(photo / f"{n}.png")) for n in ("photo", "filled", "mask"))
        np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
        wanted = Inpainter.from_pretrained(model, "cpu")(before, mask)
        np.testing.assert_array_equal(after, wanted)

    def test_the_shipped_model_is_the_default(self, model, photo, capsys, monkeypatch):
        monkeypatch.setattr(pretrained, "SHIPPED", model.parent)
        monkeypatch.chdir(photo)
        model.rename(model.parent / "small")
        arguments = self.arguments("", photo)
        assert main([word for word in arguments if word not in ("--model", "")]) == 0
        assert "1 written, 0 failed" in capsys.readouterr().out
        before, after, mask = (np.asarray(Image.open(photo / f"{n}.png")) for n in ("photo", "filled", "mask"))
        np.testing.assert_array_equal(after, Inpainter.from_pretrained(model.parent / "small", "cpu")(before, mask))
        with pytest.raises(SystemExit):
            main(["inpaint", "--help"])
        assert "(default: small)" in " ".join(capsys.readouterr().out.split())

    def test_failures_are_named_and_counted(self, model, photo, capsys):
        (photo / "broken.png").write_bytes(b"no image")
        arguments = self.arguments(model, photo, image=photo, output=photo.parent / f"{photo.name}-filled")
        assert main(arguments) == 1
        streams = capsys.readouterr()
        assert "broken.png" in streams.err
        assert "1 written, 1 failed" in streams.out

    @pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
    def test_bad_input_is_one_line_and_leaves_nothing(self, model, photo, make, capsys, monkeypatch):
        changes, message = make(photo, model, monkeypatch)
        before = sorted(photo.rglob("*"))
        assert main(self.arguments(model, photo, **changes)) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("fastinpaint: error: ")
        assert error.count("\n") == 1
        assert sorted(photo.rglob("*")) == before

    def test_one_bad_file_does_not_stop_a_folder(self, model, photo, capsys, monkeypatch):
        folder = photo / "images"
        folder.mkdir()
        for name in ("a", "z"):
            Image.open(photo / "photo.png").save(folder / f"{name}.png")
        for make in (truncated_jpeg, no_bytes, bomb, pipe):
            changes, _ = make(photo, model, monkeypatch)
            changes["image"].rename(folder / f"{make.__name__}{changes['image'].suffix}")
        assert main(self.arguments(model, photo, image=folder, output=photo / "filled")) == 1
        streams = capsys.readouterr()
        assert "2 written, 4 failed" in streams.out
        told = [line for line in streams.err.splitlines() if line.startswith("fastinpaint: error: ")]
        assert len(told) == 4
        assert all(any(f"{name}." in line for line in told) for name in ("truncated_jpeg", "no_bytes", "bomb", "pipe"))
        assert sorted(path.name for path in (photo / "filled").iterdir()) == ["a.png", "z.png"]

    def test_debug_shows_where_a_file_failed(self, model, photo, capsys):
        (photo / "photo.png").write_bytes(b"no image")
        assert main([*self.arguments(model, photo), "--debug"]) == 1
        assert "Traceback (most recent call last)" in capsys.readouterr().err

    def test_mask_from_alpha_and_other_flags(self, model, photo, capsys):
        layered = Image.open(photo / "photo.png")
        layered.putalpha(Image.open(photo / "mask.png").point(lambda value: 255 - value))
        layered.save(photo / "layered.png")
        arguments = self.arguments(model, photo, image=photo / "layered.png", mask="alpha")
        assert main([*arguments, "--mask-dilate", "2", "--batch-size", "2"]) == 0
        before, after = (np.asarray(Image.open(photo / f"{name}.png")) for name in ("photo", "filled"))
        assert (after[..., 3] == 255).all()
        assert (after[6, 12, :3] != before[6, 12]).any()  # two pixels outside the hole
        np.testing.assert_array_equal(after[5, :, :3], before[5])
        assert main([*arguments, "--skip-existing"]) == 0
        assert "0 written, 0 failed, 1 skipped" in capsys.readouterr().out


class TestConvert:
    def test_a_model_is_replaced_only_when_asked(self, model, capsys):
        before = (model / "config.json").read_bytes()
        assert main(["convert", str(CHECKPOINT), str(model)]) == 1
        assert "--overwrite replaces the model" in capsys.readouterr().err
        assert (model / "config.json").read_bytes() == before
        assert main(["convert", str(CHECKPOINT), str(model), "--overwrite"]) == 0
        assert (model / "config.json").read_bytes() != before

    def test_generator_agrees_with_the_original(self, tmp_path, capsys):
        assert main(["convert", str(CHECKPOINT), str(tmp_path / "model")]) == 0
        assert "InpaintGenerator written" in capsys.readouterr().out
        generator = InpaintGenerator.from_pretrained(tmp_path / "model")
        arrays = golden("generator_w16")
        image, mask = nchw(arrays["image"]), nchw(arrays["mask"])
        with torch.no_grad():
            output = generator(fastinpaint.assemble_input(image, mask, nchw(arrays["edge"])))
        for scale, name in enumerate(("full", "half", "quarter")):
            assert relative_error(output.images[scale], nchw(arrays[f"image_{name}"])) <= 1e-4
            assert relative_error(output.gradients[scale], nchw(arrays[f"gradient_{name}"])) <= 1e-4

    def test_discriminator_agrees_with_the_original(self, tmp_path):
        assert main(["convert", str(CHECKPOINT), str(tmp_path / "model"), "--discriminator"]) == 0
        arrays = golden("generator_w16")
        with torch.no_grad():
            logits = PatchDiscriminator.from_pretrained(tmp_path / "model")(nchw(arrays["image"]))
        assert relative_error(logits, nchw(arrays["discriminator"])) <= 1e-4


def test_masks(tmp_path, capsys):
    arguments = ["masks", "--output", str(tmp_path / "m"), "--count", "3", "--size", "20", "30", "--seed", "4"]
    assert main(arguments) == 0
    files = sorted((tmp_path / "m").iterdir())
    masks = [np.asarray(Image.open(path)) for path in files]
    assert len(masks) == 3
    assert all(mask.shape == (20, 30) and set(np.unique(mask)) == {0, 255} for mask in masks)
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert all((np.asarray(Image.open(path)) == mask).all() for path, mask in zip(files, masks, strict=True))


def test_masks_by_bin(tmp_path, capsys):
    arguments = ["masks", "--output", str(tmp_path / "m"), "--count", "2", "--size", "64", "64", "--kind", "box"]
    assert main([*arguments, "--bins", "10-20", "40-50"]) == 0
    assert "4 masks written" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["10-20", "40-50"]
    assert main(arguments) == 1
    with pytest.raises(SystemExit):
        main([*arguments, "--bins", "20-10"])
    assert "must be percentages such as 10-20, got 20-10" in capsys.readouterr().err


def test_info_runs_as_a_module():
    found = subprocess.run([sys.executable, "-m", "fastinpaint", "info"], check=True, capture_output=True, text=True)
    assert "operators" in found.stdout


@pytest.mark.parametrize(("more", "wanted"), [((), "auto"), (("--precision", "bfloat16"), "bfloat16")])
def test_inpaint_passes_its_precision_on(model, photo, more, wanted, monkeypatch):
    found = []
    load = Inpainter.from_pretrained

    def loaded(*arguments):
        found.append(arguments[-1])
        return load(*arguments[:-1])

    monkeypatch.setattr(Inpainter, "from_pretrained", loaded)
    paths = (("--model", model), ("--image", photo / "photo.png"), ("--mask", photo / "mask.png"))
    named = [text for name, path in paths for text in (name, str(path))]
    assert main(["inpaint", *named, "--output", str(photo / "filled.png"), *more]) == 0
    assert found == [wanted]
