"""The TensorFlow checkpoint reader: a real checkpoint, synthetic ones, and damaged ones."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinpaint.checkpoint.tensorflow import find_tf_checkpoint, is_optimizer_slot, read_tf_checkpoint
from fastinpaint.checkpoint.tensorflow.checksum import masked_crc32c
from fastinpaint.checkpoint.tensorflow.entries import Slice, slice_key
from fastinpaint.checkpoint.tensorflow.sstable import read_table
from tests.helpers.tf_checkpoint_writer import (
    BFLOAT16,
    DTYPES,
    STRING,
    entry,
    extents,
    field,
    header,
    table,
    table_of_blocks,
    write_checkpoint,
)

pytest.importorskip("google_crc32c", reason="needs the extra convert")

REAL = Path(__file__).parent / "golden" / "tf_checkpoint_w16"
NAME = "InpaintModel.model-7"


def test_checksum_is_the_published_one() -> None:  # RFC 3720, appendix B.4, masked as LevelDB documents it
    for data, crc in ((b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)):
        rotated = (masked_crc32c(data) - 0xA282EAD8) & 0xFFFFFFFF
        assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc


def test_without_google_crc32c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ImportError, match=r"needs google_crc32c: pip install 'fastinpaint\[convert\]'"):
        read_tf_checkpoint(REAL)


@pytest.mark.parametrize("suffix", ["", f"/{NAME}", f"/{NAME}.index", "/checkpoint", f"/{NAME}.data-00000-of-00001"])
def test_real_checkpoint(suffix: str) -> None:
    variables = read_tf_checkpoint(f"{REAL}{suffix}")
    assert len(variables) == 180
    assert list(variables) == sorted(variables)
    assert variables["inpaint_net/conv2d/kernel"].shape == (7, 7, 11, 16)
    assert variables["discriminator256/conv5/u"].shape == (1, 1)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in variables.values())
    assert sum(array.nbytes for array in variables.values()) == (REAL / f"{NAME}.data-00000-of-00001").stat().st_size


@pytest.mark.parametrize("block_entries", [1, 3, 1000])
@pytest.mark.parametrize("shards", [1, 3])
def test_blocks_shards_and_types(tmp_path: Path, block_entries: int, shards: int) -> None:
    rng = np.random.default_rng(0)
    variables = {f"net/conv_{i}/kernel": rng.standard_normal((3, 3, i, 2), np.float32) for i in range(40)}
    for dtype in ("f8", "i4", "u1", "i2", "i1", "c8", "i8", "f2", "u4"):
        variables[f"net/{dtype}"] = rng.integers(0, 100, (2, 3)).astype(dtype)
    variables["net/bool"] = np.array([True, False, True])
    variables["net/scalar"] = np.float32(3.5)
    write_checkpoint(tmp_path / "m", variables, shards=shards, block_entries=block_entries)
    read = read_tf_checkpoint(tmp_path)
    assert read.keys() == variables.keys()
    for name, array in variables.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        assert read[name].flags.writeable


def test_optimizer_slots_and_strings_are_left_out(tmp_path: Path) -> None:
    net = {"net/w": np.ones(3, np.float32), "net/Adam_layer/w": np.ones(1, np.float32)}
    slots = {
        "net/w/Adam": np.ones(3, np.float32),
        "net/w/Adam_1": np.ones(3, np.float32),
        "beta1_power": np.float32(0.5),
        "opt/beta2_power_1": np.float32(0.5),
        "global_step": np.int64(7),
    }
    entries = write_checkpoint(tmp_path / "m", net | slots)
    entries[b"_CHECKPOINTABLE_OBJECT_GRAPH"] = entry(STRING, (), 0, 0, b"")
    (tmp_path / "m.index").write_bytes(table(entries))
    assert read_tf_checkpoint(tmp_path).keys() == net.keys()
    assert read_tf_checkpoint(tmp_path, optimizer_slots=True).keys() == (net | slots).keys()
    assert [name for name in net | slots if is_optimizer_slot(name)] == list(slots)
    assert not is_optimizer_slot("Adam")
    assert not is_optimizer_slot("net/my_global_step")


def test_slots_of_tensorflow_2_are_left_out(tmp_path: Path) -> None:
    value = "/.ATTRIBUTES/VARIABLE_VALUE"
    net = ["net/layer-0/kernel", "optimizer_net/kernel", "net/optimizer", "save_counters"]
    slots = [
        "net/layer-0/kernel/.OPTIMIZER_SLOT/optimizer/m",
        "optimizer/iter",
        "optimizer/learning_rate",
        "model/optimizer/beta_1",
        "g_optimizer/_variables/12",
        "optimizer_1/_iterations",
        "save_counter",
    ]
    write_checkpoint(tmp_path / "ckpt-1", {f"{name}{value}": np.ones(2, np.float32) for name in net + slots})
    assert read_tf_checkpoint(tmp_path).keys() == {f"{name}{value}" for name in net}
    assert len(read_tf_checkpoint(tmp_path, optimizer_slots=True)) == len(net + slots)


def test_types_that_numpy_does_not_hold_are_skipped_by_name(tmp_path: Path) -> None:
    entries = write_checkpoint(tmp_path / "m", {"w": np.ones(2, np.float32)})
    entries |= {
        b"iterator": entry(21, (), 0, 0, b""),
        b"small": entry(11, (3,), 0, 0, b""),
        b"new": entry(99, (), 0, 0, b""),
    }
    (tmp_path / "m.index").write_bytes(table(entries))
    with pytest.warns(
        UserWarning, match=r"m\.index: skipped.*: iterator \(variant\), new \(type number 99\), small \(qint8\)$"
    ):
        assert read_tf_checkpoint(tmp_path).keys() == {"w"}


def test_saved_model(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "assets").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"")
    write_checkpoint(tmp_path / "variables" / "variables", {"w": np.arange(3, dtype=np.float32)})
    for path in (tmp_path, tmp_path / "saved_model.pb", tmp_path / "variables"):
        assert find_tf_checkpoint(path) == tmp_path / "variables" / "variables"
        np.testing.assert_array_equal(read_tf_checkpoint(path)["w"], [0, 1, 2])


class TestPartitioned:
    """A variable of shape (5, 300) in slices; TensorFlow writes the whole axis as an empty extent."""

    SLICES = (((0, 2), (0, None)), ((2, 3), (0, 200)), ((2, 3), (200, 100)))

    def write(self, folder: Path, slices: Sequence[Slice], dtype: str = "f4") -> np.ndarray:
        whole = np.random.default_rng(0).integers(0, 99, (5, 300)).astype(dtype)
        parts = {
            f"part-{number}": whole[tuple(slice(s, None if n is None else s + n) for s, n in each)]
            for number, each in enumerate(slices)
        }
        entries = write_checkpoint(folder / "m", {**parts, "other": np.ones(2, np.float32)}, shards=2)
        entries[b"net/w"] = entry(DTYPES[dtype], whole.shape, 0, 0, b"") + b"".join(extents(*each) for each in slices)
        for number, each in enumerate(slices):
            entries[slice_key(b"net/w", each)] = entries.pop(f"part-{number}".encode())
        (folder / "m.index").write_bytes(table(entries))
        return whole

    @pytest.mark.parametrize("dtype", ["f4", "i8"])
    def test_is_joined(self, tmp_path: Path, dtype: str) -> None:
        whole = self.write(tmp_path, self.SLICES, dtype)
        read = read_tf_checkpoint(tmp_path)
        assert read.keys() == {"net/w", "other"}
        assert read["net/w"].dtype == whole.dtype
        np.testing.assert_array_equal(read["net/w"], whole)

    @pytest.mark.parametrize(
        ("slices", "reason"),
        [
            (SLICES[:2], r"hold 1200 values, not 1500"),
            ((*SLICES[:2], ((1, 3), (0, 100))), "overlap and leave a gap"),
        ],
    )
    def test_gaps_are_refused(self, tmp_path: Path, slices: Sequence[Slice], reason: str) -> None:
        self.write(tmp_path, slices)
        with pytest.raises(ValueError, match=rf"m\.index: the slices of net/w {reason}"):
            read_tf_checkpoint(tmp_path)

    def test_keys_are_tensorflows(self) -> None:
        """Ordered code: a zero, the name and its end, the rank, and starts and lengths as signed numbers."""
        assert slice_key(b"foo", ((0, None), (1, 3))) == b"\0foo\0\1\1\2\x80\x7f\x81\x83"
        assert slice_key(b"", ((63, 64),)) == b"\0\0\1\1\1\xbf\xc0\x40"
        assert slice_key(b"a\0b", ((8191, 8192),)) == b"\0a\0\xffb\0\1\1\1\xdf\xff\xe0\x20\0"
        assert slice_key(b"", ()) == b"\0\0\1\0"
        assert (
            slice_key(b"", ((2**56 - 1, 2**63 - 1),))
            == b"\0\0\1\1\1\xff\x80" + b"\xff" * 7 + b"\xff\xc0\x7f" + b"\xff" * 7
        )


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.0, np.inf], np.float32)
    data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)
    (tmp_path / "m.index").write_bytes(table({b"": header(), b"w": entry(BFLOAT16, (4,), 0, 0, data)}))
    read = read_tf_checkpoint(tmp_path)["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def test_folder_with_a_moved_or_missing_state_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m-1", {"w": np.ones(2, np.float32)})
    write_checkpoint(tmp_path / "m-2", {"w": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=r"choose one of m-1\.index, m-2\.index"):
        read_tf_checkpoint(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/home/someone/run/m-2"\n')
    assert find_tf_checkpoint(tmp_path) == tmp_path / "m-2"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m-3"\n')
    with pytest.raises(FileNotFoundError, match=r"names m-3"):
        read_tf_checkpoint(tmp_path)
    (tmp_path / "checkpoint").write_text("something else")
    with pytest.raises(ValueError, match="has no line model_checkpoint_path"):
        read_tf_checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"looked for .*nothing\.index"):
        read_tf_checkpoint(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"looked for checkpoint, \*\.index and"):
        read_tf_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "m", {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}, shards=2)
    (tmp_path / "m.data-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.data-00001-of-00002"):
        read_tf_checkpoint(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"weights\.pth is not part of a TensorFlow"):
        read_tf_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4" * 50, bytes(1000)])
def test_foreign_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.index").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.index is truncated or not the index"):
        read_tf_checkpoint(tmp_path / "m")


def damaged_copy(folder: Path, suffix: str, content: bytes) -> Path:
    """A copy of the real checkpoint with one file replaced."""
    for file in REAL.glob(f"{NAME}.*"):
        shutil.copy(file, folder / file.name)
    (folder / f"{NAME}{suffix}").write_bytes(content)
    return folder / NAME


def test_truncated_real_checkpoint(tmp_path: Path) -> None:
    index = (REAL / f"{NAME}.index").read_bytes()
    prefix = damaged_copy(tmp_path, ".index", index)
    for length in [*range(0, len(index), 97), len(index) - 1]:
        Path(f"{prefix}.index").write_bytes(index[:length])
        with pytest.raises(ValueError, match=r"\.index is truncated"):
            read_tf_checkpoint(prefix)
        Path(f"{prefix}.index").write_bytes(index[length:-48] + index[-48:] if length else index[1:])
        with pytest.raises(ValueError, match=r"\.index is (corrupt|truncated)"):
            read_tf_checkpoint(prefix)
    data = (REAL / f"{NAME}.data-00000-of-00001").read_bytes()
    for length in (0, 1, 1000, len(data) - 1):
        prefix = damaged_copy(tmp_path, ".data-00000-of-00001", data[:length])
        with pytest.raises(ValueError, match=rf"00001 is truncated: it has {length} bytes"):
            read_tf_checkpoint(prefix)


def test_flipped_bytes_of_the_real_checkpoint(tmp_path: Path) -> None:
    index = (REAL / f"{NAME}.index").read_bytes()
    prefix = damaged_copy(tmp_path, ".index", index)
    rng = np.random.default_rng(0)
    padding = range(len(index) - 48 + 6, len(index) - 8)  # of the footer: no checksum, no meaning
    meta = range(len(index) - 48, len(index) - 46)  # where the unused meta index lies
    for position in [*rng.integers(0, len(index) - 48, 60), *range(len(index) - 48, len(index))]:
        damaged = bytearray(index)
        damaged[position] ^= int(rng.integers(1, 256))
        Path(f"{prefix}.index").write_bytes(damaged)
        if position in padding or position in meta:
            continue
        with pytest.raises(ValueError, match=r"\.index is "):
            read_tf_checkpoint(prefix)
    data = bytearray((REAL / f"{NAME}.data-00000-of-00001").read_bytes())
    data[2_000_000] ^= 1
    prefix = damaged_copy(tmp_path, ".data-00000-of-00001", bytes(data))
    Path(f"{prefix}.index").write_bytes(index)
    with pytest.raises(ValueError, match=r"00001 is corrupt: the checksum of \S+ is wrong"):
        read_tf_checkpoint(prefix)


FOUR = np.ones(4, np.float32).tobytes()
WRONG = {
    "no header": ({b"w": entry(1, (4,), 0, 0, FOUR)}, "no header"),
    "big-endian": ({b"": header(endianness=1)}, "big-endian"),
    "no shards": ({b"": header(shards=0)}, "claims 0 data files"),
    "shard out of range": ({b"": header(), b"w": entry(1, (4,), 1, 0, FOUR)}, "data file 1 of 1"),
    "negative shape": ({b"": header(), b"w": entry(1, (-4,), 0, 0, FOUR)}, r"shape is \[-4\]"),
    "huge shape": ({b"": header(), b"w": entry(1, (1 << 40, 1 << 40), 0, 0, FOUR)}, "takes 48357"),
    "huge and empty": ({b"": header(), b"w": entry(1, (0, 1 << 62, 1 << 62), 0, 0, b"")}, "cannot have the shape"),
    "huge size": ({b"": header(), b"w": entry(1, (1 << 40,), 0, 0, FOUR, size=1 << 42)}, "is truncated"),
    "negative offset": ({b"": header(), b"w": entry(1, (4,), 0, -8, FOUR)}, "negative place"),
    "overlap": ({b"": header(), **{b"w%d" % i: entry(1, (4,), 0, 0, FOUR) for i in range(9)}}, "overlap"),
    "no extents": ({b"": header(), b"w": entry(1, (4,), 0, 0, FOUR) + field(7, b"")}, r"slice of shape \(4,\) is \[\]"),
    "number for a slice": ({b"": header(), b"w": entry(1, (4,), 0, 0, FOUR) + field(7, 3)}, "a number where a message"),
    "slice outside": ({b"": header(), b"w": entry(1, (4,), 0, 0, b"") + extents((3, 2))}, r"is \[\(3, 2\)\]"),
    "negative slice": ({b"": header(), b"w": entry(1, (4,), 0, 0, b"") + extents((-1, 5))}, r"is \[\(-1, 5\)\]"),
    "missing slices": ({b"": header(), b"w": entry(1, (4,), 0, 0, b"") + extents((0, 4))}, "1 of 1 slices of w are"),
    "not UTF-8": ({b"": header(), b"\xff": entry(1, (4,), 0, 0, FOUR)}, "not UTF-8"),
    "cut message": ({b"": header(), b"w": entry(1, (4,), 0, 0, FOUR)[:-2]}, "bytes follow"),
    "group": ({b"": header(), b"w": b"\x0b"}, "unknown kind 3"),
    "endless integer": ({b"": header(), b"w": b"\x08" + b"\xff" * 20}, "cut off or too long"),
    "bytes for a number": ({b"": header(), b"w": field(1, b"abc")}, "bytes where a number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_entries_under_right_checksums(tmp_path: Path, case: str) -> None:
    entries, reason = WRONG[case]
    (tmp_path / "m.data-00000-of-00001").write_bytes(FOUR)
    (tmp_path / "m.index").write_bytes(table(entries))
    with pytest.raises(ValueError, match=rf"m\.(index|data).*{reason}"):
        read_tf_checkpoint(tmp_path)


SMALL_OR_WILD = st.one_of(st.integers(-1, 20), st.integers(-(1 << 63), (1 << 63) - 1))
ENTRIES = st.builds(
    entry,
    SMALL_OR_WILD,
    st.lists(SMALL_OR_WILD, max_size=4),
    st.integers(-1, 1),
    SMALL_OR_WILD,
    st.sampled_from([b"", bytes(4), bytes(16)]),
    size=st.one_of(st.none(), SMALL_OR_WILD),
)


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=40) | ENTRIES, max_size=4))
def test_random_entries_give_arrays_or_value_errors(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[bytes, bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "random_entries"
    folder.mkdir(exist_ok=True)
    (folder / "m.data-00000-of-00001").write_bytes(bytes(64))
    (folder / "m.index").write_bytes(table({b"": header()} | entries, block_entries=2))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of types that are skipped
            read_tf_checkpoint(folder)
    except (ValueError, FileNotFoundError) as error:
        assert "m.index" in str(error) or "m.data" in str(error)  # noqa: PT017 - success is fine too


@given(st.binary(max_size=300))
def test_random_bytes_are_value_errors(data: bytes) -> None:
    for content in (data, data + table({})[-48:]):
        with pytest.raises(ValueError):
            read_table(content)


ONE_RESTART = bytes([0, 0, 0, 0, 1, 0, 0, 0])
ENTRY = b"\0\1\3" + b"k" + b"abc"  # shares 0 bytes, adds 1 to the key, has 3 of a value


def test_a_table_of_given_blocks() -> None:
    assert read_table(table_of_blocks(ENTRY + b"\1\1\0" + b"l" + ONE_RESTART)) == {b"k": b"abc", b"kl": b""}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (table_of_blocks(ENTRY + ONE_RESTART, ENTRY + ONE_RESTART, offsets=(0, 0)), "blocks overlap at byte 0"),
        (table_of_blocks(b"\1\1\0" + b"k" + ONE_RESTART), "key shares 1 of 0 bytes"),
        (table_of_blocks(b"\0\xff\x7f\0" + bytes(16383) + ONE_RESTART), "adds 16383"),
        (table_of_blocks(ENTRY[:2] + b"\5" + ENTRY[3:] + ONE_RESTART), "runs into its restart points"),
        (table_of_blocks(ENTRY + b"\xff\xff\xff\xff"), "shorter than its list of restart points"),
        (table_of_blocks(b""), "wrong|shorter|runs|follow"),
        (table_of_blocks(ENTRY + ONE_RESTART, compression=2), r"compressed \(the unknown type 2\)"),
        (table_of_blocks(ENTRY + ONE_RESTART, compression=1), r"compressed \(Snappy\), which is not supported"),
        (table_of_blocks(ENTRY + ONE_RESTART, offsets=(1 << 60,)), "reaches beyond"),
    ],
)
def test_wrong_blocks_under_right_checksums(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_table(content)
