"""What is put comes back, as long as there is room, whatever the directory does."""

import errno
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flower_ext.edgeprompt.errors import CorruptBlockError, StoreError
from flower_ext.edgeprompt.precision import Precision, encode
from flower_ext.edgeprompt.store import KVStore, StoreBytes, StoreCounts
from flower_ext.errors import InvalidInputError
from tests.edgeprompt.stored_blocks import (
    KEY,
    address,
    age,
    block,
    file_of,
    files,
    header_of,
    same,
    size_of_a_file,
    total,
)


@pytest.fixture(scope="module")
def size(tmp_path_factory: pytest.TempPathFactory) -> int:
    return size_of_a_file(tmp_path_factory.mktemp("size"))


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_returns_what_was_put(
    tmp_path: Path, precision: Precision, dtype: torch.dtype
) -> None:
    x = [torch.randn(2, 7, 5).to(dtype) for _ in range(12)]
    put = encode(x, x, precision)
    in_memory, on_disk = KVStore(), KVStore(tmp_path)
    for store in (in_memory, on_disk, KVStore(tmp_path)):
        assert (address(1) in store) == (store not in (in_memory, on_disk))
        store.put(address(1), put)
        assert address(1) in store
        assert same(store.get(address(1)), put)
        assert store.get(address(2)) is None
        assert store.counts == StoreCounts(hits=1, misses=1)
    again = KVStore(tmp_path)
    found = again.get(address(1))
    assert same(found, put)
    assert again.get(address(1)) is not None
    assert again.nbytes == StoreBytes(put.nbytes, total(tmp_path))


def test_a_file_is_named_by_its_address_and_safetensors_reads_it(
    tmp_path: Path,
) -> None:
    KVStore(tmp_path, key=KEY).put(address(1), block())
    assert files(tmp_path) == [f"{address(1).digest.hex()}.safetensors"]
    path = file_of(tmp_path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["layer.00000", "layer.00001", "layer.00002"]
        assert torch.equal(file.get_tensor("layer.00001"), block().layers[1])
        assert file.metadata()["tokens"] == "8"


def test_a_block_from_disk_is_mapped_and_outlives_its_file(tmp_path: Path) -> None:
    KVStore(tmp_path).put(address(1), block(tokens=2048))
    store = KVStore(tmp_path)
    found = store.get(address(1))
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(file_of(tmp_path, 1)) in maps.read_text()
    KVStore(tmp_path).discard(address(1))
    assert files(tmp_path) == []
    assert same(found, block(tokens=2048))
    assert same(store.get(address(1)), block(tokens=2048))


def test_mapped_blocks_hold_no_file_descriptors(tmp_path: Path) -> None:
    writer, reader = KVStore(tmp_path), KVStore(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for i in range(20):
        writer.put(address(i), block())
        assert reader.get(address(i)) is not None
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before


def test_discard_removes_everything(tmp_path: Path) -> None:
    for store in (KVStore(), KVStore(tmp_path)):
        store.put_partial(address(1), header_of(block()), block().layers[:1])
        store.discard(address(1))
        assert store.get_partial(address(1)) is None
        store.put(address(1), block())
        with store.pinned([address(1)]):
            store.discard(address(1))
        assert address(1) not in store
        assert store.get(address(1)) is None
        store.discard(address(1))
        assert store.nbytes == (0, 0)


def test_what_does_not_fit_its_shape_is_not_kept() -> None:
    store, good = KVStore(), block()
    with pytest.raises(InvalidInputError, match="has 3 layers, got 2"):
        store.put(address(1), replace(good, layers=good.layers[:2]))
    with pytest.raises(InvalidInputError, match="has 3 layers, got 4"):
        store.put(address(1), replace(good, layers=(*good.layers, good.layers[0])))
    short = (*good.layers[:2], good.layers[2][:-1])
    with pytest.raises(InvalidInputError, match=r"shape \[512\] on the CPU, got .*511"):
        store.put(address(1), replace(good, layers=short))
    assert address(1) not in store


# -- what has come of a block ---------------------------------------------------------


def test_a_part_of_a_block_is_resumed_by_another_store(tmp_path: Path) -> None:
    whole = block()
    for first, second in ((KVStore(tmp_path), KVStore(tmp_path)), (KVStore(),) * 2):
        assert first.get_partial(address(1)) is None
        for count in (1, 2):
            first.put_partial(address(1), header_of(whole), whole.layers[:count])
            found = second.get_partial(address(1))
            assert found is not None
            assert found[0] == header_of(whole)
            assert len(found[1]) == count
            assert all(map(torch.equal, found[1], whole.layers))
        assert address(1) not in second
        assert second.get(address(1)) is None

        second.put(address(1), whole)

        assert first.get_partial(address(1)) is None
        first.put_partial(address(1), header_of(whole), whole.layers[:1])
        assert first.get_partial(address(1)) is None
    assert files(tmp_path) == [file_of(tmp_path, 1).name]


def test_a_changed_part_is_refused(tmp_path: Path) -> None:
    store = KVStore(tmp_path)
    store.put_partial(address(1), header_of(block()), block().layers[:2])
    path = file_of(tmp_path, 1, partial=True)
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    assert store.get_partial(address(1)) is None
    assert store.counts.refused == 1
    assert files(tmp_path) == []


def test_parts_that_are_wrong_are_not_kept(tmp_path: Path) -> None:
    store, whole = KVStore(tmp_path), block()
    header = header_of(whole)
    store.put_partial(address(1), header, [])
    with pytest.raises(CorruptBlockError, match="Layer 1 of block"):
        store.put_partial(address(1), header, [whole.layers[0], whole.layers[2]])
    with pytest.raises(InvalidInputError, match=r"shape \[512\]"):
        store.put_partial(address(1), header, [whole.layers[0][1:]])
    with pytest.raises(InvalidInputError, match="3 layers, got 4"):
        store.put_partial(address(1), header, [*whole.layers, whole.layers[0]])
    with pytest.raises(InvalidInputError, match=r"got \(1, 2, 3\)"):
        store.put_partial(address(1), replace(header, sizes=(1, 2, 3)), [])
    assert files(tmp_path) == []


# -- room -----------------------------------------------------------------------------


def test_memory_keeps_the_most_recently_used_within_its_budget() -> None:
    nbytes = block().nbytes
    store = KVStore(memory_bytes=3 * nbytes)
    for i in (1, 2, 3):
        store.put(address(i), block(i))
    assert store.nbytes == (3 * nbytes, 0)
    assert same(store.get(address(1)), block(1))
    store.put(address(4), block(4))
    assert [i for i in range(1, 5) if address(i) in store] == [1, 3, 4]
    assert store.counts.evictions == 1

    # One byte less, and there is room for two only.
    store = KVStore(memory_bytes=3 * nbytes - 1)
    for i in (1, 2, 3):
        store.put(address(i), block(i))
    assert [i for i in range(1, 4) if address(i) in store] == [2, 3]
    # What is larger than all there is drives nothing out.
    store.put(address(4), block(4, tokens=80))
    assert [i for i in range(1, 5) if address(i) in store] == [2, 3]


def test_the_directory_keeps_the_most_recently_used_within_its_budget(
    tmp_path: Path, size: int
) -> None:
    store = KVStore(tmp_path, disk_bytes=3 * size, memory_bytes=0)
    for i in (1, 2, 3):
        store.put(address(i), block(i))
        age(file_of(tmp_path, i), 100 - i)
    assert store.nbytes == (0, 3 * size)
    assert same(KVStore(tmp_path).get(address(1)), block(1))  # Read: used now.
    store.put(address(2), block(2))  # Put again: used now.
    store.put(address(4), block(4))
    assert [i for i in range(1, 5) if address(i) in store] == [1, 2, 4]
    assert store.counts.evictions == 1
    assert total(tmp_path) == 3 * size

    # One byte less, and there is room for two only.
    tight = KVStore(tmp_path, disk_bytes=3 * size - 1, memory_bytes=0)
    tight.put(address(5), block(5))
    assert total(tmp_path) == 2 * size
    # What is larger than all there is drives nothing out.
    tight.put(address(6), block(6, tokens=800))
    assert total(tmp_path) == 2 * size
    assert address(5) in tight


def test_a_hit_in_memory_counts_as_use_of_the_file(tmp_path: Path, size: int) -> None:
    store = KVStore(tmp_path, disk_bytes=2 * size)
    for i in (1, 2):
        store.put(address(i), block(i))
        age(file_of(tmp_path, i), 100 - i)
    assert store.get(address(1)) is not None
    store.put(address(3), block(3))
    assert files(tmp_path) == sorted(file_of(tmp_path, i).name for i in (1, 3))
    assert same(store.get(address(2)), block(2))  # From memory, as before.


def test_parts_are_within_the_budget(tmp_path: Path, size: int) -> None:
    store = KVStore(tmp_path, disk_bytes=size)
    store.put_partial(address(1), header_of(block(1)), block(1).layers[:1])
    assert store.nbytes.disk > 0
    store.put(address(2), block(2))
    assert files(tmp_path) == [file_of(tmp_path, 2).name]
    assert store.get_partial(address(1)) is None


def test_no_disk_and_no_memory_keep_nothing(tmp_path: Path) -> None:
    store = KVStore(tmp_path, disk_bytes=0, memory_bytes=0)
    store.put(address(1), block())
    assert store.get(address(1)) is None
    assert files(tmp_path) == []


def test_pinned_blocks_stay_in_memory() -> None:
    nbytes = block().nbytes
    store = KVStore(memory_bytes=2 * nbytes)
    store.put(address(1), block(1))
    with store.pinned([address(1), address(3)]), store.pinned([address(1)]):
        for i in (2, 3):
            store.put(address(i), block(i))
        assert [i for i in range(1, 4) if address(i) in store] == [1, 3]
        store.put(address(4), block(4))  # There is no room for it.
        assert [i for i in range(1, 5) if address(i) in store] == [1, 3]
    store.put(address(4), block(4))
    assert [i for i in range(1, 5) if address(i) in store] == [3, 4]


def test_pinned_blocks_stay_on_disk(tmp_path: Path, size: int) -> None:
    store = KVStore(tmp_path, disk_bytes=2 * size, memory_bytes=0)
    same_directory = KVStore(tmp_path, disk_bytes=2 * size, memory_bytes=0)
    store.put(address(1), block(1))
    with store.pinned([address(1), address(3)]):
        store.put(address(2), block(2))
        same_directory.put(address(4), block(4))
        assert [i for i in range(1, 5) if address(i) in store] == [1, 4]
        store.put(address(3), block(3))  # Pinned before it was there.
        assert [i for i in range(1, 5) if address(i) in store] == [1, 3]
        for by in (store, same_directory):
            by.put(address(4), block(4))
            assert [i for i in range(1, 5) if address(i) in store] == [1, 3]
        with same_directory.pinned([address(3)]):
            pass
        same_directory.put(address(4), block(4))
        assert [i for i in range(1, 5) if address(i) in store] == [1, 3]
    same_directory.put(address(4), block(4))
    assert total(tmp_path) == 2 * size
    assert address(4) in store


# -- when a directory does not do -----------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failed_write_loses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    number: int,
) -> None:
    store = KVStore(tmp_path)
    store.put(address(1), block(1))
    store.put_partial(address(4), header_of(block(4)), block(4).layers[:1])
    before = files(tmp_path)

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        store.put(address(2), block(2))
        store.put(address(3), block(3))
        store.put_partial(address(4), header_of(block(4)), block(4).layers[:2])
        assert files(tmp_path) == before
    assert len(caplog.records) == 1
    assert os.strerror(number) in caplog.text
    for i in (1, 2, 3):
        assert same(store.get(address(i)), block(i))
    partial = store.get_partial(address(4))
    assert partial is not None
    assert len(partial[1]) == 2
    assert same(KVStore(tmp_path).get(address(1)), block(1))
    # And once it works again, it is used again.
    store.put(address(2), block(2))
    assert same(KVStore(tmp_path).get(address(2)), block(2))


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Choose a directory"):
        KVStore(tmp_path / "file" / "blocks")


def test_a_directory_that_cannot_be_written_to_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KVStore(tmp_path).put(address(1), block(1))

    def fail(*args: object, **kwargs: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    # The superuser, as whom tests may run, is not held up by permissions.
    for call in ("utime", "unlink", "replace"):
        monkeypatch.setattr(os, call, fail)
    store = KVStore(tmp_path)
    assert same(store.get(address(1)), block(1))
    store.put(address(2), block(2))
    assert same(store.get(address(2)), block(2))


# -- the key --------------------------------------------------------------------------


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    directory = tmp_path / "some" / "blocks"
    KVStore(directory)
    key = directory / "key"
    made = key.read_bytes()
    assert len(made) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    KVStore(directory)
    assert key.read_bytes() == made
    KVStore(tmp_path / "other")
    assert (tmp_path / "other" / "key").read_bytes() != made
    KVStore(tmp_path / "given", key=KEY)
    assert not (tmp_path / "given" / "key").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    KVStore(tmp_path)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(StoreError, match=f"mode {mode:o}.*chmod 600"):
        KVStore(tmp_path)


@pytest.mark.parametrize("length", [0, 31, 33, 1000])
def test_a_key_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(InvalidInputError, match=f"32 bytes, got {length}"):
        KVStore(tmp_path, key=bytes(length))
    (tmp_path / "key").write_bytes(bytes(length))
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(StoreError, match=f"32 bytes, got {min(length, 33)}"):
        KVStore(tmp_path)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="has no such flag")
def test_a_key_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(KEY)
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        KVStore(tmp_path / "blocks")


def test_budgets_are_not_negative() -> None:
    with pytest.raises(InvalidInputError, match=r"memory_bytes .* got -1"):
        KVStore(memory_bytes=-1)
    with pytest.raises(InvalidInputError, match=r"disk_bytes .* got -2"):
        KVStore(disk_bytes=-2)
