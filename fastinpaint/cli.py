"""The command line. Each command's modules are imported only when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import fastinpaint
from fastinpaint.evaluation import command as evaluate
from fastinpaint.export import command as export

Arguments = argparse.Namespace

USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ImportError)


class Command(NamedTuple):
    """What a command does in a line, which arguments it takes, and what runs it and gives its exit code."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 on failure (told in one line on stderr), 130 after Ctrl-C. Wrong arguments exit with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    options = _parser(chosen).parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except KeyboardInterrupt:
        print("fastinpaint: interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        print(f"fastinpaint: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage, which ``--help`` prints."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="fastinpaint", description="Structure-aware image inpainting.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fastinpaint {fastinpaint.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.summary, description=command.summary, allow_abbrev=False)
        if name == chosen:
            command.add_arguments(sub)
    return parser


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for everything it makes (default: demo)"
    )
    parser.add_argument(
        "--seconds", type=_positive(float), default=None, help="training time (default: 170 on a CPU, 60 on a GPU)"
    )
    parser.add_argument("--seed", type=_whole, default=0, help="seed of weights, crops and holes (default: 0)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")


def _demo(options: Arguments) -> int:
    from fastinpaint.demo import run_demo

    run_demo(options.output, seconds=options.seconds, seed=options.seed, device=options.device)
    return 0


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import add_flags
    from fastinpaint.training.presets import preset_names

    parser.add_argument(
        "--config",
        help=f"YAML file of options, or a preset ({', '.join(preset_names())}); the flags below come on top of it",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in the output folder with the options in its config.yaml; other options "
        "given beside are applied and named",
    )
    parser.add_argument("--print-config", action="store_true", help="print the options as YAML, explained, and stop")
    add_flags(parser.add_argument_group("options, as in the YAML file"), TrainConfig)


def _train(options: Arguments) -> int:
    import logging

    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import flag_values, from_mapping, merge, modernise, read_yaml, to_mapping
    from fastinpaint.training.presets import find_config

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = modernise(TrainConfig, read_yaml(find_config(options.config))) if options.config else {}
    given = merge(given, flag_values(TrainConfig, options))
    if options.resume:
        run = TrainConfig.of_run(given.get("output", TrainConfig().output))
        given = merge(to_mapping(run), given)
    config = from_mapping(TrainConfig, given)
    if options.print_config:
        print(config.to_yaml(), end="")
        return 0
    from fastinpaint.training.distributed import leave
    from fastinpaint.training.trainer import Trainer

    trainer = Trainer(config, resume=options.resume)
    model = trainer.run()
    leave()
    if trainer.ranks.main and not trainer.stopped:  # by a lost terminal, perhaps, to which nothing can be printed
        print(f"model written to {model}")
    return 0


def _inpaint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="small",
        help="folder with model.safetensors and config.json, or the name of a model that ships with the package "
        "(default: small)",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, required=True, help="an image, or a folder of them")
    parser.add_argument(
        "--mask", type=Path, required=True, help="mask image (white is hole), or a folder of the same names"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write, or for a folder the folder")
    parser.add_argument("--invert-mask", action="store_true", help="black is hole")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist; refused otherwise")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument(
        "--strategy", choices=("crop", "resize", "original"), default="crop",
        help="large images: crop fills around each hole at full size, resize fills the whole image at --max-side and "
        "enlarges the filling, original fills the whole image at its size (default: crop)",
    )  # fmt: skip
    parser.add_argument(
        "--max-side", type=_whole, default=512,
        help="images with a longer side in pixels are large; 0: none is (default: 512)",
    )  # fmt: skip


def _inpaint(options: Arguments) -> int:
    from fastinpaint.inference.files import inpaint_files
    from fastinpaint.inference.inpainter import Inpainter

    inpainter = Inpainter.from_pretrained(options.model, options.device, options.max_side, options.strategy)
    summary = inpaint_files(
        inpainter, options.image, options.mask, options.output,
        invert_mask=options.invert_mask, overwrite=options.overwrite,
    )  # fmt: skip
    for path, reason in summary.failed:
        print(f"fastinpaint: error: {path}: {reason}", file=sys.stderr)
    print(f"{len(summary.written)} written, {len(summary.failed)} failed")
    return 1 if summary.failed else 0


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="TF_CHECKPOINT", help="NAME of NAME.index and NAME.data-*")
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="folder to write the model to")
    parser.add_argument(
        "--discriminator", action="store_true", help="convert the discriminator instead of the generator"
    )


def _convert(options: Arguments) -> int:
    from fastinpaint.checkpoint.tensorflow import read_tf_checkpoint
    from fastinpaint.models.from_tensorflow import discriminator_from_tf, generator_from_tf

    variables = read_tf_checkpoint(options.checkpoint)
    model = discriminator_from_tf(variables) if options.discriminator else generator_from_tf(variables)
    model.save_pretrained(options.output)
    print(f"{type(model).__name__} written to {options.output}")
    return 0


def _masks_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder to write mask-000000.png, ... to")
    parser.add_argument("--count", type=_positive(int), default=100, help="how many (default: 100)")
    parser.add_argument(
        "--size", type=_positive(int), nargs=2, default=(256, 256), metavar=("H", "W"), help="pixels (default: 256 256)"
    )
    parser.add_argument("--seed", type=_whole, default=0, help="(default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist; refused otherwise")


def _masks(options: Arguments) -> int:
    from fastinpaint.data.masks import save_masks

    existing = next(options.output.glob("mask-*.png"), None)
    if existing and not options.overwrite:
        raise FileExistsError(f"{existing} exists already; --overwrite replaces masks")
    height, width = options.size
    save_masks(options.output, options.count, height, width, seed=options.seed)
    print(f"{options.count} masks written to {options.output}")
    return 0


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(options: Arguments) -> int:
    import json

    from fastinpaint.info import collect, describe

    facts = collect()
    print(json.dumps(facts, indent=2) if options.json else describe(facts))
    return 0


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


COMMANDS = {
    "demo": Command("train a small model in minutes and fill holes in photographs", _demo_arguments, _demo),
    "train": Command("train a generator on a folder of images", _train_arguments, _train),
    "inpaint": Command("fill the holes of an image or of a folder of images", _inpaint_arguments, _inpaint),
    "evaluate": Command(evaluate.SUMMARY, evaluate.add_arguments, evaluate.run),
    "export": Command(export.SUMMARY, export.add_arguments, export.run),
    "convert": Command("convert a TensorFlow checkpoint of the original system", _convert_arguments, _convert),
    "masks": Command("write training masks as PNG files", _masks_arguments, _masks),
    "info": Command("print versions, devices and active backends", _info_arguments, _info),
}
