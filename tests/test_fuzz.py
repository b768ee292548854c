"""The first cases of every fuzzing target; ``make fuzz`` runs on from there."""

from pathlib import Path

import pytest

from tests.fuzz.cases import TARGETS, run_case

COUNTS = {"model_folder": 40, "training_state": 100, "vgg_weights": 60, "train_options": 40}
OFTEN = 200


@pytest.mark.parametrize("target", TARGETS)
def test_first_cases(target: str, tmp_path: Path) -> None:
    if target == "tf_checkpoint":
        pytest.importorskip("google_crc32c", reason="needs the extra convert")
    for number in range(COUNTS.get(target, OFTEN)):
        folder = tmp_path / str(number)
        folder.mkdir()
        print(f"python -m tests.fuzz --target {target} --case {number}")  # shown if it fails
        run_case(target, number, folder)


def test_a_case_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_case("picture", 7, tmp_path / name)
    assert (tmp_path / "a" / "photo.png").read_bytes() == (tmp_path / "b" / "photo.png").read_bytes()
