"""Which faults a simulated federation has, how often, and how many it has had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from flower_ext.coding.reply import EXAMPLES_KEY, WEIGHTED_EXAMPLES_KEY

__all__ = ["CORRUPTIONS", "LIES", "FaultMix", "corrupt", "lie"]

CORRUPTIONS = (
    "nan",
    "infinite",
    "shape",
    "dtype",
    "missing-array",
    "extra-array",
    "wrong-count",
    "negative-count",
    "count-of-others",
    "no-metrics",
    "two-metrics",
    "no-arrays",
    "empty",
)
"""What may be wrong with a reply by itself, apart from the values of its arrays."""

LIES = ("scaled", "negated", "noisy", "wrong-count")
"""What only other replies can tell: where replies are verified, no count is trusted."""


@dataclass(frozen=True)
class FaultMix:
    """How often faults happen.

    Parameters
    ----------
    straggle : float
        Probability that a job takes 5 to 50 times as long.
    silent : float
        Probability that a process dies before it pulls its message: no answer ever.
    crash : float
        Probability that the train function raises (code 2).
    lost_process : float
        Probability that a process dies at work (code 8, a minute later).
    unavailable : float
        Probability that the SuperLink says that there is no reply (code 3) while the
        node is at work.
    corrupt : float
        Probability that a reply is not what was asked for.
    duplicate : float
        Probability that a reply comes twice.
    slow_upload : float
        Probability that a reply is 1 to 40 seconds on its way.
    deaths : float
        Deaths per node and second.
    joins : float
        New nodes per second.
    lag : float
        Longest time until a node is listed, or dropped from the list, seconds.
    pauses : float
        Probability that the server takes an hour or more between two rounds.
    lies : float
        Probability that a reply of a node that may lie is well formed and false.
    liars : int
        How many nodes may lie in a round.
    """

    straggle: float
    silent: float
    crash: float
    lost_process: float
    unavailable: float
    corrupt: float
    duplicate: float
    slow_upload: float
    deaths: float
    joins: float
    lag: float
    pauses: float
    lies: float = 0.0
    liars: int = 0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> FaultMix:
        """Return a mix of few, some or many faults, each kind on its own."""

        def some(most: float) -> float:
            return float(rng.choice([0.0, 0.2, 1.0], p=[0.4, 0.3, 0.3])) * most

        return cls(
            straggle=some(0.3),
            silent=some(0.04),
            crash=some(0.15),
            lost_process=some(0.08),
            unavailable=some(0.06),
            corrupt=some(0.2),
            duplicate=some(0.3),
            slow_upload=some(0.15),
            deaths=some(0.01),
            joins=some(0.03),
            lag=some(10.0),
            pauses=some(0.1),
        )


def corrupt(kind: str, content: RecordDict) -> RecordDict:
    """Return a reply's content with one thing wrong; the original is left alone.

    Parameters
    ----------
    kind : str
        One of :data:`CORRUPTIONS`.
    content : RecordDict
        The content of a coded reply.
    """
    [(arrays_name, arrays)] = content.array_records.items()
    [(metrics_name, metrics)] = content.metric_records.items()
    found = ArrayRecord(dict(arrays))
    told = MetricRecord(dict(metrics))
    weight = found["weight"].numpy().copy()
    counts = told[EXAMPLES_KEY]
    assert isinstance(counts, list)
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}
    if kind in ("nan", "infinite"):
        weight[0, 0] = np.nan if kind == "nan" else np.inf
        found["weight"] = Array(weight)
    elif kind == "shape":
        found["weight"] = Array(weight.reshape(-1))
    elif kind == "dtype":
        found["weight"] = Array(weight.astype(np.float64))
    elif kind == "missing-array":
        del found["count"]
    elif kind == "extra-array":
        found["bias"] = Array(weight)
    elif kind == "wrong-count":
        # Of all of them, in a difference of partitions, nothing would contradict it.
        first, *others = map(float, counts)
        told[EXAMPLES_KEY] = [first + 1.0, *others]
    elif kind == "negative-count":
        told[EXAMPLES_KEY] = [-float(n) for n in counts]
    elif kind == "count-of-others":
        told[EXAMPLES_KEY] = [float(n) for n in counts] + [3.0]
    elif kind == "two-metrics":
        records["other"] = MetricRecord({WEIGHTED_EXAMPLES_KEY: 1.0})
    elif kind == "empty":
        return RecordDict()
    if kind != "no-arrays":
        records[arrays_name] = found
    if kind != "no-metrics":
        records[metrics_name] = told
    return RecordDict(records)


def lie(kind: str, content: RecordDict, rng: np.random.Generator) -> RecordDict:
    """Return a reply's content with false values; the original is left alone.

    Parameters
    ----------
    kind : str
        One of :data:`LIES`.
    content : RecordDict
        The content of a coded reply.
    rng : numpy.random.Generator
        Source of noise.
    """
    if kind == "wrong-count":
        return corrupt(kind, content)
    [(arrays_name, arrays)] = content.array_records.items()
    false = ArrayRecord()
    for name, array in arrays.items():
        values = array.numpy()
        if kind == "scaled":
            told = 3.0 * values + 5.0
        elif kind == "negated":
            told = -values - 1.0
        else:
            told = values + 50.0 * rng.normal(size=values.shape)
        false[name] = Array(np.asarray(told, values.dtype))
    return RecordDict({**content, arrays_name: false})
