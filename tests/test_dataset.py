"""The dataset: reproducible by seed, epoch and index in any number of workers; unreadable files are skipped."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fastinpaint.data import images
from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.images import read_image, square_crop_resize, to_signed_tensor
from tests.helpers.photographs import crops


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, (height, width) in {"a.png": (40, 50), "b.png": (64, 33), "sub/c.png": (30, 30)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def all_of(dataset: InpaintDataset) -> torch.Tensor:
    return torch.stack([dataset[index] for index in range(len(dataset))])


def test_center_crops_of_a_folder(folder: Path) -> None:
    dataset = InpaintDataset(folder, 24)
    images = all_of(dataset)
    assert images.shape == (3, 3, 24, 24)
    assert images.dtype == torch.float32
    expected = to_signed_tensor(square_crop_resize(read_image(folder / "b.png"), 24))
    assert torch.equal(images[1], expected)
    dataset.set_epoch(1)
    assert torch.equal(all_of(dataset), images)


def test_random_draws_depend_on_seed_epoch_and_index_alone(folder: Path) -> None:
    dataset = InpaintDataset(folder, 16, "random", seed=3, flip=True)
    first = all_of(dataset)
    assert torch.equal(dataset[2], first[2])
    assert torch.equal(dataset[-1], first[2])
    dataset.set_epoch(1)
    assert torch.equal(dataset.draw(2, 0), first[2])
    second = all_of(dataset)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    dataset.set_epoch(0)
    assert torch.equal(all_of(dataset), first)
    assert not torch.equal(all_of(InpaintDataset(folder, 16, "random", seed=4, flip=True)), first)


@pytest.mark.parametrize(("crop", "decoded"), [("center", (120, 100)), ("random", (240, 200))])
def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path, monkeypatch, crop: str, decoded) -> None:
    (photograph,) = crops(1, 240)
    Image.fromarray(photograph[:, :200]).resize((480, 400)).save(tmp_path / "a.jpg", quality=95)
    sizes = []
    whole = images.to_rgb
    monkeypatch.setattr(images, "to_rgb", lambda image, **options: sizes.append(image.size) or whole(image, **options))
    dataset, every_pixel = (InpaintDataset(tmp_path, 45, crop, cache=cache) for cache in (False, True))
    square = dataset[0]
    assert sizes == [decoded]
    assert square.shape == (3, 45, 45)
    if crop == "center":
        error = (square - every_pixel[0]).square().mean() / 4
        assert -10 * error.log10() > 36  # filters differ, places do not
        assert sizes[1] == (480, 400)  # kept for any size that may be asked for
    assert dataset.of_size(390)[0].shape == (3, 390, 390)
    assert sizes[-1] == (480, 400)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_see_the_epoch(folder: Path, context: str) -> None:
    options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": context}
    dataset = InpaintDataset(folder, 16, "random", flip=True)
    loader = DataLoader(dataset, batch_size=1, **options)
    alone = InpaintDataset(folder, 16, "random", flip=True)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        assert torch.equal(torch.cat(list(loader)), all_of(alone))


def test_flips_mirror_about_half_of_the_images() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    plain = to_signed_tensor(image)
    dataset = InpaintDataset.from_arrays([image] * 60, 8, flip=True)
    mirrored = [torch.equal(item, plain.flip(-1)) for item in all_of(dataset)]
    assert [torch.equal(item, plain) for item in all_of(dataset)] == [not value for value in mirrored]
    assert 15 < sum(mirrored) < 45


def test_unreadable_files_are_replaced_by_the_next_and_counted(folder: Path) -> None:
    expected = InpaintDataset(folder, 16)[1]
    (folder / "a.png").write_bytes(b"broken")
    (folder / "sub" / "c.png").unlink()
    (folder / "sub" / "c.png").write_bytes((folder / "b.png").read_bytes()[:200])
    dataset = InpaintDataset(folder, 16)
    assert dataset.unreadable == []
    with pytest.warns(RuntimeWarning, match=r"skipped an unreadable file: .*a\.png cannot be read"):
        assert torch.equal(dataset[0], expected)
    assert dataset.unreadable == [folder / "a.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(dataset[0], expected)
    with pytest.warns(RuntimeWarning, match=r"c\.png cannot be read"):
        assert torch.equal(dataset[2], expected)
    assert len(dataset.unreadable) == 2
    assert len(dataset) == 3


def test_the_count_of_unreadable_files_comes_back_from_workers(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"broken")
    dataset = InpaintDataset(folder, 16)
    images = torch.cat(list(DataLoader(dataset, batch_size=1, num_workers=2)))
    assert torch.equal(images[0], images[1])
    assert dataset.unreadable == [folder / "a.png"]


def test_only_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    dataset = InpaintDataset(tmp_path, 16)
    with pytest.warns(RuntimeWarning, match="skipped"), pytest.raises(ValueError, match=r"none of 1 files .*a\.png"):
        dataset[0]
    with pytest.raises(ValueError, match=r"none of 1 files could be read"):
        dataset[0]


def test_pictures_in_memory() -> None:
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (9, 9), dtype=np.uint8), rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    dataset = InpaintDataset.from_arrays([grey, colour, clear], 9)
    assert len(dataset) == 3
    assert dataset.unreadable == []
    assert torch.equal(dataset[0], to_signed_tensor(grey[..., None].repeat(3, 2)))
    assert torch.equal(dataset[1], to_signed_tensor(colour))
    assert dataset[2].min() == 1
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1], dataset[1])


def test_cache_reads_each_file_once(folder: Path) -> None:
    dataset = InpaintDataset(folder, 16, "random", cache=True)
    first = all_of(dataset)
    for path in folder.rglob("*.png"):
        path.unlink()
    assert torch.equal(all_of(dataset), first)


def test_wrong_arguments_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        InpaintDataset(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected a crop of center or random, got 'top'"):
        InpaintDataset(folder, crop="top")
    with pytest.raises(ValueError, match="image_size >= 1 and seed >= 0, got 0 and 0"):
        InpaintDataset(folder, 0)
    with pytest.raises(ValueError, match="epoch of at least 0, got -1"):
        InpaintDataset(folder).set_epoch(-1)
    with pytest.raises(IndexError, match="index 3 of 3"):
        InpaintDataset(folder)[3]
    with pytest.raises(ValueError, match="at least one picture"):
        InpaintDataset.from_arrays([])
    with pytest.raises(TypeError, match="uint8 arrays or PIL images, got float64"):
        InpaintDataset.from_arrays([np.zeros((4, 4, 3))])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"got \(4, 4, 4\)"):
        InpaintDataset.from_arrays([np.zeros((4, 4, 4), np.uint8)])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_decoded_images_are_the_same_in_every_process(folder: Path, tmp_path_factory, context: str) -> None:
    (folder / "d.png").write_bytes(b"broken")
    options = {"flip": True, "seed": 3}
    with pytest.warns(RuntimeWarning, match=r"d\.png"):
        expected = all_of(InpaintDataset(folder, 16, "random", **options))
    dataset = InpaintDataset(folder, 16, "random", **options)
    with pytest.warns(RuntimeWarning, match=r"d\.png"):
        decoded = dataset.decode_all(tmp_path_factory.mktemp("run") / "decoded.u8")
    for path in folder.rglob("*.png"):
        path.unlink()
    assert torch.equal(all_of(dataset), expected)
    loader = DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), expected)
    assert dataset.unreadable == [folder / "d.png"]
    assert torch.equal(dataset.of_size(24).draw(1, 0), InpaintDataset(decoded, 24, "random", **options)[1])
    decoded.close()
    assert not decoded.path.exists()
    assert torch.equal(dataset[0], expected[0])


def test_pixels_are_what_the_signed_image_is_made_of(folder: Path) -> None:
    dataset = InpaintDataset(folder, 16, "random", flip=True)
    pixels = dataset.draw_pixels(1, 4)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels.to(torch.float32).div_(127.5).sub_(1.0), dataset.draw(1, 4))
