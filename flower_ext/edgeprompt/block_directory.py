"""A directory of blocks that several processes share: its key, its room, and pins."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from filelock import FileLock

from flower_ext.edgeprompt.block_files import read
from flower_ext.edgeprompt.blocks import Address
from flower_ext.edgeprompt.errors import CorruptBlockError, StoreError
from flower_ext.edgeprompt.source import BlockHeader

if sys.platform != "win32":
    import fcntl

__all__ = ["KEY_BYTES", "BlockDirectory"]

KEY_BYTES = 32
"""The length of a store's key."""

_SUFFIX = ".safetensors"
_NAMES = re.compile(r"[0-9a-f]{64}(\.partial)?\.safetensors")
_WRITING = ".writing-"
_LOCK_SECONDS = 60.0  # A block is written in far less.


class _Kept(NamedTuple):
    """A file, and when it was last used."""

    used_ns: int
    path: Path
    nbytes: int


class BlockDirectory:
    """Files of blocks, within a budget, by names.

    Everything that adds or evicts files does so under the lock of the file ``lock``, so
    that processes keep the budget together. A file is read without it: it is written
    elsewhere and renamed, and lives on for who has it open or mapped.

    Parameters
    ----------
    path : Path
        Made, for its owner alone, if it is not there.
    nbytes : int
        The most that all files together may have, at least 0.
    key : bytes | None
        Under which files are authenticated, :data:`KEY_BYTES`. None: that of the file
        ``key``, made at random if there is none.

    Raises
    ------
    StoreError
        If the directory or the key cannot be made or read; if the key's file has
        another length, is no plain file, or may be read by others.

    Attributes
    ----------
    key : bytes
        Under which files are authenticated.
    """

    def __init__(self, path: Path, nbytes: int, key: bytes | None) -> None:
        self._path = path
        self._budget = nbytes
        self._lock = FileLock(str(path / "lock"), timeout=_LOCK_SECONDS, mode=0o600)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.key = self._shared_key() if key is None else key
        except (OSError, NotImplementedError) as error:
            raise StoreError(
                f"Blocks cannot be kept in {path}: {error}. Choose a directory that "
                "can be written to, or None to keep them in memory."
            ) from error

    def __contains__(self, name: str) -> bool:
        """Return whether there is such a file, whatever it holds."""
        return self._file(name).exists()

    @property
    def nbytes(self) -> int:
        """The bytes of all files of blocks."""
        return sum(kept.nbytes for kept in self._kept())

    def read(
        self, name: str, address: Address
    ) -> tuple[BlockHeader, tuple[torch.Tensor, ...]] | None:
        """Map a file that counts as used from now on.

        Returns
        -------
        tuple[BlockHeader, tuple[torch.Tensor, ...]] | None
            As :func:`flower_ext.edgeprompt.block_files.read`; None if there is none.

        Raises
        ------
        CorruptBlockError
            If the file is not what was written for that address; it is removed.
        OSError
            If it cannot be read.
        """
        path = self._file(name)
        try:
            # Held open, so that no other file can be taken for this one below.
            with path.open("rb") as file:
                try:
                    found = read(path, address, self.key)
                except CorruptBlockError:
                    self._remove_if_still(path, file)
                    raise
        except FileNotFoundError:
            return None
        self.touch(name)
        return found

    def touch(self, name: str) -> bool:
        """Count a file as used now; return whether it is there."""
        try:
            os.utime(self._file(name))
        except FileNotFoundError:
            return False
        except OSError:  # Of a read-only directory nothing is evicted either.
            return self._file(name).exists()
        return True

    def write(self, name: str, data: bytes, pinned: Collection[str] = ()) -> int | None:
        """Write a file, in place of what it was, and evict the least recently used.

        The file is there whole or not at all, even if this process or the machine dies.

        Parameters
        ----------
        name : str
            Of the file.
        data : bytes
            What it shall hold.
        pinned : Collection[str]
            Names of files that this process does not let go of.

        Returns
        -------
        int | None
            How many files have been evicted; None if there was not enough room that
            nobody had pinned, and nothing was written.

        Raises
        ------
        OSError
            If it could not be written. What was there under this name still is.
        """
        path = self._file(name)
        if len(data) > self._budget:
            return None
        with self._lock:
            self._clear_leftovers()
            others = [kept for kept in self._kept() if kept.path != path]
            excess = sum(kept.nbytes for kept in others) + len(data) - self._budget
            held = {self._file(p) for p in pinned}
            evicted = self._evict([k for k in others if k.path not in held], excess)
            if evicted is not None:
                self._replace(path, data)
            return evicted

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and can be removed, pinned or not."""
        with contextlib.suppress(OSError):
            self._file(name).unlink(missing_ok=True)

    def pin(self, name: str) -> BinaryIO | None:
        """Keep a file from being evicted by any process, as long as this one lives.

        Where the system has no ``flock``, other processes do not heed it.

        Returns
        -------
        BinaryIO | None
            To be closed when the pin shall end; None if the file is not there.
        """
        path = self._file(name)
        while True:
            try:
                file = path.open("rb")
            except OSError:
                return None
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_SH)
            if _is_still(path, file):
                return file
            file.close()

    def _file(self, name: str) -> Path:
        return self._path / (name + _SUFFIX)

    def _kept(self) -> list[_Kept]:
        """Return all files of blocks, least recently used first."""
        kept = []
        for path in self._path.iterdir():
            if not _NAMES.fullmatch(path.name):
                continue
            try:
                found = path.stat()
            except FileNotFoundError:  # Removed by another process.
                continue
            kept.append(_Kept(found.st_mtime_ns, path, found.st_size))
        return sorted(kept)

    def _evict(self, candidates: list[_Kept], excess: int) -> int | None:
        """Remove files until the excess is gone; if it would stay, none, and None."""
        chosen, freed = [], 0
        for kept in candidates:
            if freed >= excess:
                break
            if _unpinned(kept.path, remove=False):
                chosen.append(kept)
                freed += kept.nbytes
        if freed < excess:
            return None
        for kept in chosen:
            if not _unpinned(kept.path, remove=True):  # Pinned just now.
                freed -= kept.nbytes
        return len(chosen) if freed >= excess else None

    def _replace(self, path: Path, data: bytes) -> None:
        """Write a file, readable by its owner alone, whole or not at all."""
        descriptor, name = tempfile.mkstemp(prefix=_WRITING, dir=self._path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        if sys.platform != "win32":
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)  # So that the name is kept, too.
            finally:
                os.close(folder)

    def _clear_leftovers(self) -> None:
        """Remove what dead writers have left: under the lock there are no others."""
        for path in self._path.glob(f"{_WRITING}*"):
            path.unlink(missing_ok=True)

    def _remove_if_still(self, path: Path, file: BinaryIO) -> None:
        """Remove a file, unless another process has put another in its place."""
        try:
            with self._lock:
                if _is_still(path, file):
                    path.unlink()
        except (OSError, NotImplementedError):
            pass  # It is not used, and will be refused again.

    def _shared_key(self) -> bytes:
        """Return the directory's key; the first process makes it."""
        path = self._path / "key"
        if not path.exists():
            with self._lock:
                if not path.exists():
                    self._replace(path, secrets.token_bytes(KEY_BYTES))
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            key = file.read(KEY_BYTES + 1)
        if not stat.S_ISREG(mode) or len(key) != KEY_BYTES:
            raise StoreError(
                f"{path} must be a file of {KEY_BYTES} bytes, got {len(key)}: remove "
                "it, and the blocks that it vouched for are refused and made anew."
            )
        if sys.platform != "win32" and mode & 0o077:
            raise StoreError(
                f"{path} may be read by others (mode {mode & 0o777:o}), who could have "
                "forged blocks: remove it, or, if nobody has read it, chmod 600."
            )
        return key


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Return whether a name still is that of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _unpinned(path: Path, *, remove: bool) -> bool:
    """Return whether no process has a file pinned, and remove it then, if told to."""
    try:
        with path.open("rb") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove:
                path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True
