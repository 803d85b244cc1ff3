"""Requests and totals of an inference evaluation as flat records of a message.

A field's key is its name with hyphens. Nothing here knows Flower: ``ConfigRecord`` and
``MetricRecord`` are made from mappings, and read as such.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.latency import LatencyHistogram

__all__ = [
    "ConfigValue",
    "MetricValue",
    "RequestRecord",
    "TotalsRecord",
    "check_choice",
    "check_kind",
    "key_of",
    "perplexity",
    "ratio",
]

MetricValue = int | float | list[int] | list[float]

ConfigValue = (
    int
    | float
    | str
    | bytes
    | bool
    | list[int]
    | list[float]
    | list[str]
    | list[bytes]
    | list[bool]
)

# What a value must be; an int does for a float, a bool for no number.
_KINDS: dict[str, type] = {
    "int": int,
    "float": float,
    "str": str,
    "bytes": bytes,
    "bool": bool,
}
_SECRET = ("token", "root_certificate")


@dataclass(frozen=True)
class RequestRecord:
    """What an evaluation asks of a node; subclasses have the fields."""

    about: ClassVar[str]
    """What asks, as errors call it."""

    def to_config(self) -> dict[str, ConfigValue]:
        """Return the values of a ``ConfigRecord``, those at their default left out."""
        found: dict[str, ConfigValue] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.default is MISSING or value != entry.default:
                found[key_of(entry.name)] = (
                    list(value) if isinstance(value, tuple) else value
                )
        return found

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a ``ConfigRecord``.

        Parameters
        ----------
        config : Mapping[str, Any]
            What :meth:`to_config` returns.

        Raises
        ------
        InvalidInputError
            If a key is unknown or lacking, or a value has the wrong type or is out of
            range.
        """
        names = {key_of(entry.name): entry.name for entry in fields(cls)}
        for key in config:
            if key not in names:
                close = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
                meant = " or ".join(map(repr, close)) or f"one of {sorted(names)}"
                raise InvalidInputError(
                    f"{cls.about} has no config key {key!r}: did you mean {meant}?"
                )
        for entry in fields(cls):
            if entry.default is MISSING and key_of(entry.name) not in config:
                raise InvalidInputError(
                    f"{cls.about} needs the config key {key_of(entry.name)!r}."
                )
        values: dict[str, Any] = {
            names[key]: tuple(value) if isinstance(value, list) else value
            for key, value in config.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class TotalsRecord(ABC):
    """Sums over texts that add up over prompts and nodes; subclasses have the fields.

    Fields are ints, floats and latency histograms, all at least 0 but for those called
    ``log_likelihood``, which are at most 0.
    """

    parts_of: ClassVar[tuple[tuple[str, str], ...]]
    """Fields, each with one that it cannot exceed."""
    largest: ClassVar[frozenset[str]] = frozenset()
    """Fields of which the larger one is kept, not the sum."""

    def __add__(self, other: Self) -> Self:
        """Return the totals of both."""
        found = {}
        for entry in fields(self):
            own, others = getattr(self, entry.name), getattr(other, entry.name)
            kept = entry.name in self.largest
            found[entry.name] = max(own, others) if kept else own + others
        return type(self)(**found)

    @abstractmethod
    def rates(self) -> dict[str, float]:
        """Return what follows from the sums, by key; NaN where nothing does."""

    def to_metrics(self) -> dict[str, MetricValue]:
        """Return the values of a ``MetricRecord``."""
        found: dict[str, MetricValue] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, LatencyHistogram):
                value = list(value.counts)
            found[key_of(entry.name)] = value
        return found

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Read a ``MetricRecord``; keys beyond those of :meth:`to_metrics` are ignored.

        Raises
        ------
        InvalidInputError
            If a key is lacking, or a value is out of range or contradicts another.
        """
        values: dict[str, Any] = {}
        for entry in fields(cls):
            key = key_of(entry.name)
            if key not in metrics:
                raise InvalidInputError(f"The metric {key!r} is lacking.")
            value = metrics[key]
            if entry.type == "LatencyHistogram":
                if not isinstance(value, list):
                    raise InvalidInputError(f"{key} must be a list, got {value!r}.")
                values[entry.name] = LatencyHistogram(tuple(value))
                continue
            kinds = (int,) if entry.type == "int" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise InvalidInputError(f"{key} must be {entry.type}, got {value!r}.")
            values[entry.name] = value
            if entry.name.endswith("log_likelihood"):
                value = -value
            if not 0 <= value < math.inf:
                raise InvalidInputError(f"{key} is out of range: {metrics[key]}.")
        totals = cls(**values)
        totals._check()
        return totals

    def _check(self) -> None:
        """Raise if numbers contradict one another."""
        for part, whole in self.parts_of:
            if getattr(self, part) > getattr(self, whole):
                raise InvalidInputError(
                    f"{key_of(part)} is {getattr(self, part)}, more than "
                    f"{key_of(whole)}, {getattr(self, whole)}."
                )


def key_of(name: str) -> str:
    """Return a field's key."""
    return name.replace("_", "-")


def check_kind(name: str, annotation: str, value: object) -> None:
    """Raise :class:`InvalidInputError` unless a value is of its field's type."""
    if annotation.startswith("tuple"):
        fits = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        annotation = "list of str"
    else:
        kinds = [_KINDS[part] for part in annotation.split(" | ")]
        if float in kinds:
            kinds.append(int)
        fits = type(value) in kinds
    if not fits:
        raise InvalidInputError(
            f"{key_of(name)} must be {annotation}, got {type(value).__name__}: "
            f"{'...' if name in _SECRET else f'{value!r:.200}'}."
        )


def check_choice(key: str, value: object, known: tuple[str, ...]) -> None:
    """Raise :class:`InvalidInputError` unless a value is one of those known."""
    if value not in known:
        choices = " or ".join(map(repr, known))
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidInputError(f"{key} must be {choices}, got {value!r}.{hint}")


def ratio(part: float, whole: float) -> float:
    """Return part of whole; nan of nothing."""
    return part / whole if whole else math.nan


def perplexity(log_likelihood: float, tokens: int) -> float:
    """Return exp(−mean log-likelihood); inf where a float cannot hold it."""
    if not tokens:
        return math.nan
    mean = -log_likelihood / tokens
    return math.exp(mean) if mean < 700 else math.inf
