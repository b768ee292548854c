"""Dataclasses as YAML and as command-line flags: every key and type is checked, every error names the option."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

T = TypeVar("T")


def option(default: Any, help: str) -> Any:
    """Declare a dataclass field with a default and one line of explanation."""
    return dataclasses.field(default=default, metadata={"help": help})


def from_mapping(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from nested mappings.

    Raises:
        ValueError: An unknown option, a value of the wrong type, or whatever the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'the configuration'} must be a mapping of options, got {values!r}")
    hints = _hints(cls)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
            raise ValueError(f"unknown option {prefix}{key}; {hint}")
    return cls(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


def to_mapping(instance: Any) -> dict[str, Any]:
    """Return nested plain values, tuples as lists, ready for YAML or JSON."""
    return {
        field.name: to_mapping(value) if dataclasses.is_dataclass(value) else _plain(value)
        for field in dataclasses.fields(instance)
        for value in [getattr(instance, field.name)]
    }


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises FileNotFoundError, or ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of options, got {type(values).__name__}")
    return values


def to_yaml(instance: Any, indent: str = "") -> str:
    """Return YAML with each option's explanation above it; reading it back gives an equal instance."""
    lines = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if "help" in field.metadata:
            lines.append(f"{indent}# {field.metadata['help']}")
        if dataclasses.is_dataclass(value):
            lines.append(f"{indent}{field.name}:\n{to_yaml(value, indent + '  ').rstrip()}")
        else:
            text = yaml.safe_dump(_plain(value), default_flow_style=True, width=2**16).strip()
            lines.append(f"{indent}{field.name}: {text.removesuffix('...').strip()}")
    return "\n".join(lines) + "\n"


def add_flags(parser: argparse._ActionsContainer, cls: type) -> None:
    """Add one flag for each option; an option of a nested group is spelled ``--group.option``."""
    for name, hint, field in _leaves(cls, ""):
        text = f"{field.metadata.get('help', '')} (default: {_plain(field.default)})".strip()
        parser.add_argument(
            _flag(name),
            dest=name,
            default=argparse.SUPPRESS,
            metavar=_describe(hint).replace(" ", "_"),
            help=text.replace("%", "%%"),
        )


def flag_values(cls: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Collect the flags that were given into nested mappings, as ``from_mapping`` takes them."""
    given: dict[str, Any] = {}
    for name, hint, _ in _leaves(cls, ""):
        if name in vars(arguments):
            *groups, key = name.split(".")
            target = given
            for part in groups:
                target = target.setdefault(part, {})
            target[key] = _parse(getattr(arguments, name), hint)
    return given


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` laid over it, group by group."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _leaves(cls: type, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name], field


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choices(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; any other type is its only alternative."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(str(value) for value in typing.get_args(hint))
    if len(_choices(hint)) > 1:
        return " or ".join(_describe(choice) for choice in _choices(hint))
    if typing.get_origin(hint) in (tuple, list):
        return "[" + ", ".join(_describe(part) for part in typing.get_args(hint)) + "]"
    if hint is type(None):
        return "null"
    return "..." if hint is Ellipsis else str(getattr(hint, "__name__", hint))


def _parse(text: str, hint: Any) -> Any:
    """Read a flag's text; an option that can only be text is taken as it stands."""
    if set(_choices(hint)) <= {str, Path, type(None)}:
        return None if text == "null" and type(None) in _choices(hint) else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _convert(value: Any, hint: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, name + ".")
    for choice in _choices(hint):
        converted = _fit(value, choice, name)
        if converted is not _MISFIT:
            return converted
    raise ValueError(f"option {name} must be {_describe(hint)}, got {value!r}")


_MISFIT = object()


def _fit(value: Any, hint: Any, name: str) -> Any:
    """Return ``value`` as ``hint`` has it, or _MISFIT."""
    if typing.get_origin(hint) is Literal:
        if isinstance(value, bool) and {"on", "off"} <= set(typing.get_args(hint)):
            return "on" if value else "off"  # YAML 1.1 reads the words as booleans
        return value if value in typing.get_args(hint) else _MISFIT
    if typing.get_origin(hint) is tuple:
        return _fit_tuple(value, typing.get_args(hint), name)
    if hint is float:
        return _fit_float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value if type(value) is hint or (hint is Path and isinstance(value, Path)) else _MISFIT


def _fit_tuple(value: Any, parts: tuple[Any, ...], name: str) -> Any:
    if not isinstance(value, (list, tuple)):
        return _MISFIT
    wanted = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
    if len(wanted) != len(value):
        return _MISFIT
    return tuple(_convert(item, part, f"{name}[{i}]") for i, (item, part) in enumerate(zip(value, wanted, strict=True)))


def _fit_float(value: Any) -> Any:
    """Take whole numbers too, and text such as 1e-4, which YAML 1.1 does not read as a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return _MISFIT
    try:
        return float(value)
    except ValueError:
        return _MISFIT


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
