"""Checkpoints as files: written whole or not at all, and checked when they are read.

A checkpoint of round r is ``round-00000r.safetensors`` with the arrays,
``round-00000r.json`` with everything else that changes, and ``told-00000r.json`` with
what the rounds since the last checkpoint have left behind, such as their metrics; each
with its SHA-256. ``round-00000r.json`` is renamed into place last, when all are on the
disk: what it is not there for does not count. Old checkpoints are removed; what rounds
have left behind stays, so that a checkpoint is as small after a thousand rounds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from logging import WARNING
from pathlib import Path
from typing import Any, NamedTuple

from flwr.supercore import log
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flower_ext.errors import InvalidInputError
from flower_ext.strategies.checkpoint_codec import State, decode, encode

__all__ = ["Checkpoint", "CheckpointFolder"]

_FORMAT = 2
_DRAFT = re.compile(r"\.(?:round|told)-\d+\.(?:json|safetensors)\.(\d+)")


class _NewerFormatError(InvalidInputError):
    """A checkpoint that another version has written."""


class Checkpoint(NamedTuple):
    """What was saved after a round.

    Parameters
    ----------
    server_round : int
        The round, from 0: nothing trained yet.
    state : State
        What a run goes on from.
    told : dict[int, State]
        What each round has left behind, by round. Where it is written: that of the
        rounds which the folder does not have yet; the checkpoint's own is in `state`.
    """

    server_round: int
    state: State
    told: dict[int, State]


class CheckpointFolder:
    """A folder with the checkpoints of one run.

    Parameters
    ----------
    path : str or Path
        The folder; it need not exist.
    keep : int (default: 2)
        Number of checkpoints to keep, at least 1: the older ones stand in for a newest
        one that its disk has damaged.

    Raises
    ------
    InvalidInputError
        If `keep` is out of range, or the path is not a folder's.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise InvalidInputError(f"keep must be a whole number >= 1, got {keep!r}.")
        if not str(path):
            raise InvalidInputError("The checkpoints' folder must have a name, got ''.")
        self.path = Path(path).expanduser().absolute()
        self.keep = keep
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInputError(
                f"Checkpoints go to a folder, but {self.path} is a file."
            )

    def rounds(self) -> list[int]:
        """Return the rounds of the checkpoints in the folder, the newest first."""
        found = []
        for path in self.path.glob("round-*.json"):
            with suppress(ValueError):
                found.append(int(path.stem.removeprefix("round-")))
        return sorted(found, reverse=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove those that are no longer to be kept.

        When it returns, the checkpoint outlives a crash of the machine.

        Raises
        ------
        InvalidInputError
            If the state holds what cannot be saved, or the folder cannot be written.
        """
        tensors: dict[str, Any] = {}
        state = encode(checkpoint.state, tensors)
        try:
            data = save(tensors)
        except (KeyError, SafetensorError) as error:
            kinds = sorted({str(tensor.dtype) for tensor in tensors.values()})
            raise InvalidInputError(
                f"safetensors cannot hold arrays of one of the dtypes {kinds}: {error}"
            ) from error
        # No arrays are among what rounds leave behind.
        told = {str(r): encode(left, {}) for r, left in checkpoint.told.items()}
        files = {
            self._tensors(checkpoint.server_round): data,
            self._told(checkpoint.server_round): _sealed({"told": told}),
            self._json(checkpoint.server_round): _sealed(
                {
                    "format": _FORMAT,
                    "round": checkpoint.server_round,
                    "arrays_sha256": hashlib.sha256(data).hexdigest(),
                    "state": state,
                }
            ),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_drafts()
            for name, content in files.items():
                _write_atomically(self.path / name, content)
        except OSError as error:
            raise InvalidInputError(
                f"The checkpoint of round {checkpoint.server_round} cannot be written "
                f"to {self.path}: {error}. What was saved before is still there."
            ) from error
        for old in self.rounds()[self.keep :]:
            for name in (self._json(old), self._tensors(old)):
                with suppress(OSError):
                    (self.path / name).unlink()

    def _remove_drafts(self) -> None:
        """Remove what processes that were killed while they wrote have left."""
        for draft in self.path.glob(".*.*.*"):
            named = _DRAFT.fullmatch(draft.name)
            if named and not _runs(int(named[1])):
                with suppress(OSError):
                    draft.unlink()

    def load(self) -> Checkpoint:
        """Return the newest checkpoint that is whole.

        Raises
        ------
        InvalidInputError
            If there is none; the message says what is wrong with each.
        """
        problems: list[str] = []
        for checkpoint, problem in self._read_all():
            if checkpoint is not None:
                for told in problems:
                    log(WARNING, "%s An older checkpoint is used.", told)
                return checkpoint
            problems.append(problem)
        raise InvalidInputError(
            f"There is no checkpoint in {self.path}"
            + (": " + " ".join(problems) if problems else ", or no such folder.")
        )

    def _read_all(self) -> Iterator[tuple[Checkpoint | None, str]]:
        for server_round in self.rounds():
            try:
                yield self._read(server_round), ""
            except _NewerFormatError:
                raise
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                name = self._json(server_round)
                yield None, f"{name} is damaged ({type(error).__name__}: {error})."

    def _read(self, server_round: int) -> Checkpoint:
        told = _unsealed(self.path / self._json(server_round))
        if told["format"] != _FORMAT:
            raise _NewerFormatError(
                f"The checkpoints in {self.path} have format {told['format']!r}, this "
                f"flower-ext reads format {_FORMAT}: use the version that wrote them."
            )
        data = (self.path / self._tensors(server_round)).read_bytes()
        if hashlib.sha256(data).hexdigest() != told["arrays_sha256"]:
            raise ValueError("its arrays are not those that were written")
        state = decode(told["state"], load(data))
        earlier = self._read_told(server_round)
        return Checkpoint(server_round, state, {**earlier, server_round: state["left"]})

    def _read_told(self, last: int) -> dict[int, State]:
        """Return what the rounds up to one have left behind."""
        found: dict[int, State] = {}
        for path in sorted(self.path.glob("told-*.json")):
            if path.name > self._told(last):
                continue
            try:
                told = _unsealed(path)["told"]
            except (OSError, ValueError, KeyError) as error:
                # Nothing that the run needs to go on.
                log(WARNING, "%s is damaged (%s): metrics are lost", path.name, error)
                continue
            found |= {int(r): decode(left, {}) for r, left in told.items()}
        return found

    @staticmethod
    def _json(server_round: int) -> str:
        return f"round-{server_round:06d}.json"

    @staticmethod
    def _told(server_round: int) -> str:
        return f"told-{server_round:06d}.json"

    @staticmethod
    def _tensors(server_round: int) -> str:
        return f"round-{server_round:06d}.safetensors"


def _digest(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sealed(told: dict[str, Any]) -> bytes:
    """Return JSON that tells whether it is as it was written."""
    return json.dumps({**told, "sha256": _digest(told)}).encode()


def _unsealed(path: Path) -> dict[str, Any]:
    """Return what :func:`_sealed` was given, or raise a ``ValueError``."""
    told: dict[str, Any] = json.loads(path.read_bytes())
    if told.pop("sha256") != _digest(told):
        raise ValueError("it is not what was written")
    return told


def _runs(process: int) -> bool:
    """Return whether there is such a process on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # It is another user's.
        return True
    return True


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole, also after a crash, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)
