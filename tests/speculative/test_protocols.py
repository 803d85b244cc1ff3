"""What a protocol sends is told by the distributions, never by what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from flower_ext.speculative import Draft, DSSDCandidates, KeyedChoices
from flower_ext.speculative.protocols import Chooser


@pytest.mark.parametrize("candidates", [7, 8, 9])
def test_what_is_drawn_does_not_tell_whether_candidates_are_sent(
    candidates: int,
) -> None:
    """Ids below 128 take one byte and others two, so that draws differ in size."""
    target = np.zeros(300, dtype=np.float32)
    target[:4] = target[200:204] = 1 / 8
    drafted_from = np.zeros(300, dtype=np.float32)
    drafted_from[150] = 1
    draft = Draft(1, 0, (), (150,), np.ones(1, dtype=np.float32))
    protocol, count = DSSDCandidates(candidates), 2_000

    sent_whole, low = set(), 0
    for seed in range(count):
        choices = KeyedChoices(seed)
        verdict = protocol.reject(draft, 0, target, 0, choices)
        sent_whole.add(verdict.distribution is not None)
        token = protocol.correct(verdict, drafted_from, 0, Chooser(choices, 0))
        assert isinstance(token, int)
        low += token < 128

    assert len(sent_whole) == 1
    assert low / count == pytest.approx(1 / 2, abs=0.03)
