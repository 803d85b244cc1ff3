"""Replies are let go as soon as they are folded into the new model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, Message

from flower_ext.strategies import CodedFedAvg
from flower_ext.strategies.averaging import apply_replies

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation


def test_no_array_of_a_round_outlives_its_aggregation(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    records: list[ArrayRecord] = []

    def behave(index: int, message: Message, reply: Message) -> Message:
        assert reply.content.array_records
        records.extend(reply.content.array_records.values())
        return reply

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        # Flower still holds the messages of the round at this time.
        assert len(records) == 6 * server_round
        assert all(len(record) == 0 for record in records)

    strategy = CodedFedAvg(code="uncoded", fraction_evaluate=0.0)
    nodes = federation(6, behave=behave)
    assert_exact(nodes.run(strategy, 2, evaluate_fn=evaluate), rounds=2)
    assert len(records) == 12


def test_each_array_is_let_go_before_the_next_one_is_folded() -> None:
    start = ArrayRecord({n: Array(np.zeros(4, np.float32)) for n in "abc"})
    seen: list[int] = []

    class Watched(ArrayRecord):
        def __getitem__(self, name: str) -> Array:
            seen.append(len(self))
            return super().__getitem__(name)

    coded = Watched({n: Array(np.full(4, 6.0, np.float32)) for n in "abc"})
    moved = apply_replies(start, [(coded, 0.5)], examples=3.0, release=True)

    assert seen == [3, 2, 1]
    assert [array.numpy().tolist() for array in moved.values()] == [[1.0] * 4] * 3
