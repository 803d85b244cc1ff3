"""What a protocol sends: told by the distributions, never by what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from flower_ext.speculative import Ask, Draft, DSSDCandidates, KeyedChoices, Verdict
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


def test_questions_end_with_the_distribution_however_large_the_vocabulary() -> None:
    """Q is P, so that no candidate is ever kept."""
    drafted_from = np.full(150_000, 1 / 150_000, dtype=np.float32)
    protocol, choice = DSSDCandidates(), Chooser(KeyedChoices(0), 0)

    asked, count, seen = [], protocol.candidates, 0
    while count:
        drawn = drafted_from[:count]
        verdict = Verdict(
            1, 0, candidates=tuple(range(count)), candidate_probabilities=drawn
        )
        ask = protocol.correct(verdict, drafted_from, seen, choice)
        assert isinstance(ask, Ask)
        assert ask.first == seen + count
        seen, count = ask.first, ask.count
        asked.append(count)

    assert asked == [64, 128, 256, 512, 1024, 2048, 4096, 0]
