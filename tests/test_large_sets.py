"""Sets of millions of images: an index instead of paths, an order instead of a list, tar shards."""

import io
import os
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from fastinpaint.data import index
from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.images import find_images
from fastinpaint.data.index import cache_file, cached_index, image_paths, write_index
from fastinpaint.data.readable import ReadableFiles
from fastinpaint.training import sampler
from fastinpaint.training.sampler import shuffled


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def age(*paths):
    for path in paths:
        os.utime(path, (1e9, 1e9))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in ("b/2.jpg", "b/c/1.png", "b.png", "a.PNG", "a/ü.jpg", ".hidden/3.png", "note.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    age(root, root / "a", root / "b", root / "b" / "c")
    return root


def test_an_index_holds_the_paths_in_order(folder, monkeypatch):
    wanted = find_images(folder)
    assert wanted == sorted(wanted)
    assert len(wanted) == 5
    assert list(image_paths(folder)) == wanted
    assert not cache_file(folder).exists()
    monkeypatch.setattr(index, "_LARGE", 2)
    found = image_paths(folder)
    assert list(found) == wanted
    assert found[-1] == wanted[-1]
    assert found[1:3] == wanted[1:3]
    assert list(pickle.loads(pickle.dumps(found))) == wanted
    with pytest.raises(IndexError):
        found[5]


def test_an_index_is_used_until_a_folder_changes(folder, monkeypatch):
    monkeypatch.setattr(index, "_LARGE", 2)
    image_paths(folder)
    monkeypatch.setattr(index, "walk_images", None)
    assert len(image_paths(folder)) == 5
    (folder / "b" / "c" / "new.jpg").touch()
    assert cached_index(folder) is None
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    monkeypatch.setattr(index, "_LARGE", 2)
    assert len(image_paths(folder)) == 6
    assert cached_index(folder) is None  # the folder changed just now and might change again unseen
    cache_file(folder).write_bytes(cache_file(folder).read_bytes()[:-9])
    assert cached_index(folder) is None
    assert len(image_paths(folder)) == 6


def test_a_million_names_are_not_held_in_memory(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    age(root)
    names = (f"{number // 1000:03d}/{number:07d}.jpg" for number in range(1_000_000))
    write_index(root, root, names, {str(root): root.stat().st_mtime_ns})
    tracemalloc.start()
    dataset = InpaintDataset(root)
    assert len(dataset) == 1_000_000
    files = dataset._images
    assert isinstance(files, ReadableFiles)
    assert files.paths[654_321] == root / "654" / "0654321.jpg"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert len(pickle.dumps(files.paths)) < 2000  # what a spawned worker is sent


@pytest.mark.parametrize("count", [1, 2, 5, 64, 65, 1000])
def test_an_encrypted_order_is_an_order(count, monkeypatch):
    monkeypatch.setattr(sampler, "_LISTED", 0)
    orders = [
        [shuffled(place, count, seed, epoch) for place in range(count)] for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count == 1000:
        assert len({tuple(order) for order in orders}) == 3
        steps = np.diff(orders[0])
        assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.1
        assert len(set(steps.tolist())) > 500


def png(colour):
    content = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(content, "PNG")
    return content.getvalue()


COLOURS = [(40 * number, 10, 200) for number in range(5)]


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as archive:
            for number in numbers:
                files = {"png": png(COLOURS[number]), "mask.png": png("white"), "json": b"{}"}
                for kind, content in files.items():
                    member = tarfile.TarInfo(f"part/{number:04d}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    age(*folder.iterdir())
    return folder


def colours_of(dataset):
    return [tuple(dataset.draw_pixels(number, 0)[:, 0, 0].tolist()) for number in range(len(dataset))]


def test_shards_are_a_set_of_images(shards):
    dataset = InpaintDataset(shards, 16)
    assert colours_of(dataset) == COLOURS
    assert cached_index(shards) is not None
    assert colours_of(InpaintDataset(shards / "train-000001.tar", 16)) == COLOURS[3:]
    with pytest.raises(FileNotFoundError, match=r"no shard at .*other\.tar"):
        InpaintDataset(shards / "other.tar")


def test_a_damaged_image_or_shard_is_named(shards):
    shard = shards / "train-000000.tar"
    content = shard.read_bytes()
    damaged = png(COLOURS[1])
    shard.write_bytes(content.replace(damaged, b"\0" * len(damaged)))
    with pytest.warns(RuntimeWarning, match=r"0001\.png in .*train-000000\.tar cannot be read as an image"):
        assert colours_of(InpaintDataset(shards, 16))[1] == COLOURS[2]
    shard.write_bytes(content[:700])
    with pytest.raises(ValueError, match=r"train-000000\.tar is not a whole tar file"):
        InpaintDataset(shards, 16)


def test_braces_and_shards_that_webdataset_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%02d.tar"), maxcount=2, verbose=0) as writer:
        for number, colour in enumerate(COLOURS):
            writer.write({"__key__": f"{number:04d}", "png": png(colour), "cls": b"1"})
    assert colours_of(InpaintDataset(tmp_path / "train-{00..02}.tar", 16)) == COLOURS
