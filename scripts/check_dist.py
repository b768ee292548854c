"""Check a release before it is uploaded.

    python scripts/check_dist.py dist

Every file in the folder passes ``twine check``. A wheel passes check-wheel-contents, abi3audit and, on Linux,
auditwheel for manylinux_2_28, and holds no path of the machine that built it. The source distribution holds every file
that git tracks. Exit status: 0 when all passed.
"""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = [f"--exclude={name}" for name in ("libtorch*", "libc10*")]  # they come with torch, which the user installs


def missing_from_sdist(sdist: Path) -> list[str]:
    """Tracked files that the source distribution lacks."""
    listing = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    return sorted(name for name in listing.split("\0") if name and name not in held and (ROOT / name).exists())


def build_paths(wheel: Path) -> list[str]:
    """Where a file of the wheel holds a folder of this machine, as "file: folder"."""
    paths = {str(ROOT), str(Path.home()), sys.prefix, sysconfig.get_paths()["purelib"], "build-via-sdist-"} - {"/"}
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    return [f"{name}: {path}" for name, held in contents.items() for path in sorted(paths) if path.encode() in held]


def main(folder: Path) -> int:
    """Run every check, report the failures; the exit status."""
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    commands: list[list[str | Path]] = [["twine", "check", "--strict", *wheels, *sdists]]
    for wheel in wheels:
        commands += [["check-wheel-contents", wheel], ["abi3audit", "--strict", "--summary", wheel]]
        if sys.platform == "linux" and "manylinux" not in wheel.name:
            machine = wheel.stem.partition("-linux_")[2]
            # What `make wheels` does in a container must succeed here, too. The repaired wheel is not kept.
            target = ["--plat", f"manylinux_2_28_{machine}", "--wheel-dir", folder.parent / "build" / "repaired"]
            commands.append(["auditwheel", "repair", *TORCH, *target, wheel])
    failed = [" ".join(map(str, command)) for command in commands if subprocess.run(command, check=False).returncode]
    for sdist in sdists:
        failed += [f"{sdist.name} lacks {name}" for name in missing_from_sdist(sdist)]
    for wheel in wheels:
        failed += [f"a path of this machine in {wheel.name}, {found}" for found in build_paths(wheel)]
    if not wheels and not sdists:
        failed.append(f"no wheel and no source distribution in {folder}")
    print("\n".join(f"FAILED: {what}" for what in failed) or f"passed: {', '.join(p.name for p in wheels + sdists)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
