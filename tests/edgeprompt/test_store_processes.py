"""Processes and threads share a directory, are killed, and run out of disk."""

import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from flower_ext.edgeprompt.store import KVStore, StoreCounts
from tests.edgeprompt.stored_blocks import (
    address,
    age,
    block,
    file_of,
    files,
    same,
    size_of_a_file,
    total,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="is about flock, signals and limits"
)
# Each process is a fork of one that has imported everything, and started no thread.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])

NO_ROOM_TO_TRY = 77


@pytest.fixture(scope="module")
def size(tmp_path_factory: pytest.TempPathFactory) -> int:
    return size_of_a_file(tmp_path_factory.mktemp("size"))


def start(work: Callable[..., None], *args: Any) -> Any:
    process = PROCESSES.Process(target=work, args=args, daemon=True)
    process.start()
    return process


def ended(process: Any) -> int:
    """Return a process's exit code."""
    process.join(60)
    code = process.exitcode
    assert code is not None
    return int(code)


# -- pins -----------------------------------------------------------------------------


def pin_for_long(directory: Path, pinned: Any) -> None:
    with KVStore(directory).pinned([address(1)]):
        pinned.set()
        time.sleep(100)


def test_pins_hold_in_other_processes_until_theirs_dies(
    tmp_path: Path, size: int
) -> None:
    store = KVStore(tmp_path, disk_bytes=2 * size, memory_bytes=0)
    for i in (1, 2):
        store.put(address(i), block(i))
        age(file_of(tmp_path, i), 100 - i)
    pinned = PROCESSES.Event()
    process = start(pin_for_long, tmp_path, pinned)
    try:
        assert pinned.wait(60)
        store.put(address(3), block(3))
        assert [i for i in range(1, 4) if address(i) in store] == [1, 3]
    finally:
        process.kill()
        ended(process)
    store.put(address(4), block(4))
    assert address(1) not in store


# -- sharing --------------------------------------------------------------------------


def work_together(
    directory: Path, disk_bytes: int, seed: int, together: Any, evictions: Any
) -> None:
    store = KVStore(directory, disk_bytes=disk_bytes, memory_bytes=2000)
    chosen = torch.Generator().manual_seed(seed)
    blocks = [block(i) for i in range(8)]
    together.wait(60)
    for _ in range(150):
        i, what = torch.randint(0, 8, (2,), generator=chosen).tolist()
        if what < 3:
            store.put(address(i), blocks[i])
        elif what == 3:
            with store.pinned([address(i)]):
                store.put(address(7 - i), blocks[7 - i])
        else:
            found = store.get(address(i))
            assert found is None or same(found, blocks[i])
    assert store.counts.hits
    assert store.counts.refused == 0
    evictions.put(store.counts.evictions)


def test_processes_share_a_directory(tmp_path: Path, size: int) -> None:
    budget = 4 * size + size // 2
    together, evictions = PROCESSES.Barrier(3), PROCESSES.Queue()
    processes = [
        start(work_together, tmp_path, budget, seed, together, evictions)
        for seed in range(3)
    ]
    assert sum(evictions.get(timeout=60) for _ in processes) > 0
    assert [ended(process) for process in processes] == [0, 0, 0]
    assert total(tmp_path) <= budget
    assert len(files(tmp_path)) == 4
    store = KVStore(tmp_path)
    for i in range(8):
        found = store.get(address(i))
        assert found is None or same(found, block(i))
    assert store.counts == StoreCounts(hits=4, misses=4)


def test_threads_share_a_store(tmp_path: Path, size: int) -> None:
    blocks = [block(i) for i in range(8)]
    store = KVStore(tmp_path, disk_bytes=4 * size, memory_bytes=2 * blocks[0].nbytes)

    def work(seed: int) -> int:
        hits = 0
        chosen = torch.Generator().manual_seed(seed)
        for i in torch.randint(0, 16, (150,), generator=chosen).tolist():
            if i < 8:
                with store.pinned([address(i)]):
                    store.put(address(i), blocks[i])
            else:
                found = store.get(address(i - 8))
                assert found is None or same(found, blocks[i - 8])
                hits += found is not None
        return hits

    with ThreadPoolExecutor(4) as pool:
        assert min(pool.map(work, range(4))) > 0
    assert total(tmp_path) <= 4 * size
    assert store.counts.refused == 0


def make_key(directory: Path, together: Any, keys: Any) -> None:
    together.wait(60)
    KVStore(directory).put(address(os.getpid()), block())
    keys.put((os.getpid(), (directory / "key").read_bytes()))


def test_processes_that_start_together_agree_on_a_key(tmp_path: Path) -> None:
    together, keys = PROCESSES.Barrier(4), PROCESSES.Queue()
    processes = [start(make_key, tmp_path, together, keys) for _ in range(4)]
    found = [keys.get(timeout=60) for _ in processes]
    assert [ended(process) for process in processes] == [0] * 4
    assert {key for _, key in found} == {(tmp_path / "key").read_bytes()}
    store = KVStore(tmp_path)
    assert all(same(store.get(address(number)), block()) for number, _ in found)


# -- death ----------------------------------------------------------------------------


def die_at(directory: Path, call: str) -> None:
    def die(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, die)
    KVStore(directory).put(address(2), block(2))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_writer_that_is_killed_leaves_nothing(
    tmp_path: Path, size: int, call: str
) -> None:
    KVStore(tmp_path).put(address(1), block(1))

    assert ended(start(die_at, tmp_path, call)) == -signal.SIGKILL

    assert len(files(tmp_path)) == 2  # One of them what it was writing.
    store = KVStore(tmp_path)
    assert store.get(address(2)) is None
    assert same(store.get(address(1)), block(1))
    store.put(address(3), block(3))
    assert files(tmp_path) == sorted(file_of(tmp_path, i).name for i in (1, 3))
    assert total(tmp_path) == 2 * size


def write_for_ever(directory: Path, begun: Any) -> None:
    store = KVStore(directory)
    blocks = [block(i) for i in range(4)]
    while True:
        for i in range(4):
            store.discard(address(i))
            store.put(address(i), blocks[i])
        begun.set()


@pytest.mark.parametrize("seconds", [0.01, 0.013, 0.017, 0.02])
def test_a_writer_killed_at_any_time_leaves_whole_files_only(
    tmp_path: Path, seconds: float
) -> None:
    begun = PROCESSES.Event()
    process = start(write_for_ever, tmp_path, begun)
    assert begun.wait(60)
    time.sleep(seconds)
    process.kill()
    ended(process)
    store = KVStore(tmp_path)
    found = [store.get(address(i)) for i in range(4)]
    assert sum(b is not None for b in found) >= 3
    assert all(b is None or same(b, block(i)) for i, b in enumerate(found))
    assert store.counts.refused == 0


# -- no room --------------------------------------------------------------------------


def limit_files(directory: Path, nbytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))


def mount_small_disk(directory: Path, nbytes: int) -> None:
    """Mount a disk for this process alone; exit if the system does not let it."""
    user, group = os.getuid(), os.getgid()
    new_mounts_and_user = 0x00020000 | 0x10000000
    if ctypes.CDLL(None).unshare(new_mounts_and_user):
        sys.exit(NO_ROOM_TO_TRY)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "none", str(directory)]
        subprocess.run(mount, check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit(NO_ROOM_TO_TRY)


def fill(
    directory: Path, limit: Callable[[Path, int], None], nbytes: int, kept: Any
) -> None:
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.levelname)  # type: ignore
    logging.getLogger().addHandler(handler)
    if limit is mount_small_disk:
        limit(directory, nbytes)
    store = KVStore(directory)
    if limit is limit_files:
        limit(directory, nbytes)
    for i in range(1, 40):
        store.put(address(i), block(i))
    assert all(same(store.get(address(i)), block(i)) for i in range(1, 40))
    assert warnings == ["WARNING"]
    found = [i for i in range(1, 40) if file_of(directory, i).exists()]
    assert files(directory) == sorted(file_of(directory, i).name for i in found)
    another = KVStore(directory)
    assert all(same(another.get(address(i)), block(i)) for i in found)
    kept.put(len(found))


def test_a_file_too_large_for_the_system(tmp_path: Path, size: int) -> None:
    kept = PROCESSES.Queue()
    assert ended(start(fill, tmp_path, limit_files, size - 1, kept)) == 0
    assert kept.get(timeout=60) == 0


def test_a_full_disk(tmp_path: Path, size: int) -> None:
    kept = PROCESSES.Queue()
    code = ended(start(fill, tmp_path, mount_small_disk, 64 * 1024, kept))
    if code == NO_ROOM_TO_TRY:
        pytest.skip("A small disk cannot be mounted here.")
    assert code == 0
    assert 5 < kept.get(timeout=60) < 64 * 1024 / size
