"""Dataclasses as YAML and as command-line flags: every key and type is checked, every error names the option."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LARGEST_FILE = 2**20  # bytes
_DEEPEST = 16  # levels of nesting; options have two
_LONGEST = 80  # characters of a wrong value in a message


def option(default: Any, help: str, *, formerly: str = "") -> Any:
    """Declare a dataclass field with a default, one line of explanation, and its former name, which is still read."""
    return dataclasses.field(default=default, metadata={"help": help, "formerly": formerly})


def from_mapping(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from nested mappings.

    Raises:
        ValueError: An unknown option, a value of the wrong type, or whatever the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        wanted = prefix.rstrip(".") or "the configuration"
        raise ValueError(f"{wanted} must be a mapping of options, got {shown(values)}")
    hints = _hints(cls)
    values = _renamed(cls, values, prefix)
    for key in values:
        if key not in hints:
            name = key if isinstance(key, str) and len(key) <= _LONGEST else shown(key)
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
            raise ValueError(f"unknown option {prefix}{name}; {hint}")
    return cls(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


def to_mapping(instance: Any) -> dict[str, Any]:
    """Return nested plain values, tuples as lists, ready for YAML or JSON."""
    return {
        field.name: to_mapping(value) if dataclasses.is_dataclass(value) else _plain(value)
        for field in dataclasses.fields(instance)
        for value in [getattr(instance, field.name)]
    }


class _Loader(yaml.SafeLoader):
    """YAML without what options never need and what makes a small file large: aliases, deep nesting, repeated keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Build the node that begins at the next event."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(event, f"alias *{event.anchor} is not taken")
        if self.depth == _DEEPEST:
            raise _Refused(event, f"nested deeper than {_DEEPEST} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _Refused(key, f"{shown(key.value)} is given twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, at: Any, problem: str) -> None:
        super().__init__(problem=problem, problem_mark=at.start_mark)


def parse_yaml(text: str) -> Any:
    """Read YAML without aliases. Raises ValueError in one line."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{place}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a number or a date that Python cannot hold
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping of at most 1 MiB. Raises FileNotFoundError, or ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} is no configuration: it has {path.stat().st_size} bytes, {_LARGEST_FILE} are taken")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
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
        if field.metadata.get("formerly"):
            *groups, _ = name.split(".")
            old = ".".join([*groups, field.metadata["formerly"]])
            parser.add_argument(_flag(old), dest=old, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def flag_values(cls: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Collect the flags that were given into nested mappings, as ``from_mapping`` takes them, under present names."""
    given: dict[str, Any] = {}
    for name, hint, field in _leaves(cls, ""):
        *groups, key = name.split(".")
        for spelled in filter(None, (key, field.metadata.get("formerly", ""))):
            dest = ".".join([*groups, spelled])
            if dest in vars(arguments):
                target = given
                for part in groups:
                    target = target.setdefault(part, {})
                target[spelled] = _parse(getattr(arguments, dest), hint)
    return _renamed(cls, given, "")


def modernise(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same options under their present names; each former name is logged."""
    return _renamed(cls, values, "")


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return the options in which two instances of a dataclass differ, by full name, with both values."""
    found = {}
    for name, _, _ in _leaves(type(old), ""):
        before, after = old, new
        for part in name.split("."):
            before, after = getattr(before, part), getattr(after, part)
        if before != after:
            found[name] = (before, after)
    return found


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` laid over it, group by group."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _renamed(cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    former = {
        field.metadata["formerly"]: field.name for field in dataclasses.fields(cls) if field.metadata.get("formerly")
    }
    renamed = dict(values)
    for old in [key for key in renamed if key in former]:
        new = former[old]
        if new in renamed:
            raise ValueError(f"option {prefix}{new} is given twice, also by its former name {prefix}{old}")
        logger.info("option %s%s is now called %s%s", prefix, old, prefix, new)
        renamed[new] = renamed.pop(old)
    return renamed


def shown(value: Any) -> str:
    """Return what a message says of a value, cut to a line."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = f"{type(value).__name__} of more than 4,000 digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


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
        return parse_yaml(text)
    except ValueError:
        return text


def _convert(value: Any, hint: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, name + ".")
    for choice in _choices(hint):
        converted = _fit(value, choice, name)
        if converted is not _MISFIT:
            return converted
    raise ValueError(f"option {name} must be {_describe(hint)}, got {shown(value)}")


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
        number = float(value)
    except (ValueError, OverflowError):
        return _MISFIT
    return number if math.isfinite(number) else _MISFIT


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
