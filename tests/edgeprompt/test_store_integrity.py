"""What a store returns is what was put, or nothing, whatever befalls a file."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_ext.edgeprompt.block_files import pack
from flower_ext.edgeprompt.precision import EncodedBlock
from flower_ext.edgeprompt.store import KVStore, StoreCounts
from tests.edgeprompt.stored_blocks import (
    KEY,
    address,
    block,
    file_of,
    files,
    header_of,
    same,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("original")
    KVStore(directory, key=KEY).put(address(1), block())
    return file_of(directory, 1).read_bytes()


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changed")


def read_changed(
    directory: Path, contents: bytes, partial: bool = False
) -> tuple[EncodedBlock | None, KVStore]:
    path = file_of(directory, 1, partial)
    path.write_bytes(contents)
    store = KVStore(directory, key=KEY)
    return store.get(address(1)), store


def regions(original: bytes) -> dict[str, tuple[int, int]]:
    """Return where in a file its parts are."""
    end = 8 + int.from_bytes(original[:8], "little")
    code = original.index(b'"hmac":"') + 8
    digest = original.index(b'"sha256":"') + 10
    return {
        "length": (0, 8),
        "header": (8, end),
        "code": (code, code + 64),
        "digest": (digest, digest + 64),
        "data": (end, len(original)),
    }


@pytest.mark.parametrize("region", ["length", "header", "code", "digest", "data"])
@settings(
    max_examples=80,
    deadline=None,
)
@given(data=st.data())
def test_a_flipped_bit_is_never_read_as_something_else(
    original: bytes,
    changed: Path,
    region: str,
    data: st.DataObject,
) -> None:
    begin, end = regions(original)[region]
    at = data.draw(st.integers(begin, end - 1))
    flipped = bytearray(original)
    flipped[at] ^= data.draw(st.integers(1, 255))

    logging.disable()
    try:
        found, store = read_changed(changed, bytes(flipped))
    finally:
        logging.disable(logging.NOTSET)

    if region == "header" and found is not None:
        # The header's padding, and how JSON writes a string, mean nothing.
        assert same(found, block())
        assert store.counts == StoreCounts(hits=1)
    else:
        assert found is None
        assert store.counts == StoreCounts(misses=1, refused=1)
        assert not file_of(changed, 1).exists()


def test_every_header_byte_flipped(original: bytes, changed: Path) -> None:
    begin, end = regions(original)["header"]
    logging.disable()
    for at in range(begin, end, 3):
        flipped = bytearray(original)
        flipped[at] ^= 1
        found, _ = read_changed(changed, bytes(flipped))
        assert found is None or same(found, block())
    logging.disable(logging.NOTSET)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_file_cut_short_or_longer_is_refused_or_whole(
    original: bytes, changed: Path, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(original) - 1))
    logging.disable()
    try:
        assert read_changed(changed, original[:cut])[0] is None
        found, _ = read_changed(changed, original + original[:cut])
    finally:
        logging.disable(logging.NOTSET)
    assert found is None or same(found, block())


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 100,
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_what_is_no_file_of_blocks_is_refused(
    changed: Path, contents: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    found, store = read_changed(changed, contents)
    assert found is None
    assert store.counts == StoreCounts(misses=1, refused=1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(address(1)) in record.getMessage()


def test_a_renamed_file_is_refused(tmp_path: Path) -> None:
    store = KVStore(tmp_path)
    store.put(address(1), block())
    file_of(tmp_path, 1).rename(file_of(tmp_path, 2))
    assert store.get(address(2)) is None
    assert store.counts.refused == 1
    assert files(tmp_path) == []


def test_a_file_of_another_key_is_refused(tmp_path: Path) -> None:
    KVStore(tmp_path, key=KEY).put(address(1), block())
    other = KVStore(tmp_path, key=bytes(32))
    assert other.get(address(1)) is None
    assert other.counts.refused == 1
    other.put(address(1), block())
    assert same(KVStore(tmp_path, key=bytes(32)).get(address(1)), block())


def test_a_forged_file_is_refused_though_its_digest_is_right(tmp_path: Path) -> None:
    store = KVStore(tmp_path)
    forged = pack(address(1), header_of(block()), block().layers, bytes(32))
    file_of(tmp_path, 1).write_bytes(forged)
    assert store.get(address(1)) is None
    genuine = pack(
        address(1),
        header_of(block()),
        block().layers,
        (tmp_path / "key").read_bytes(),
    )
    file_of(tmp_path, 1).write_bytes(genuine)
    assert same(store.get(address(1)), block())


def test_a_part_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    store = KVStore(tmp_path)
    store.put_partial(address(1), header_of(block()), block().layers[:2])
    file_of(tmp_path, 1, partial=True).rename(file_of(tmp_path, 1))
    assert store.get(address(1)) is None
    assert store.counts == StoreCounts(misses=1, refused=1)
    assert files(tmp_path) == []


def test_a_refused_block_is_kept_when_it_is_put_again(tmp_path: Path) -> None:
    KVStore(tmp_path).put(address(1), block())
    path = file_of(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    store = KVStore(tmp_path)
    assert store.get(address(1)) is None
    store.put(address(1), block())
    assert same(KVStore(tmp_path).get(address(1)), block())
