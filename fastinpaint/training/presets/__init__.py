"""Options that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the YAML file that ``name`` stands for: that of a preset, unless there is a file of this name.

    Raises:
        FileNotFoundError: Neither; the message lists the presets.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name in preset_names():
        return FOLDER / f"{name}.yaml"
    raise FileNotFoundError(f"no configuration file at {name}, and no preset of this name: {', '.join(preset_names())}")
