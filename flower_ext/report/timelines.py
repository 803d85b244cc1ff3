"""Coded rounds as a reader sees them: who did what when, and who straggled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flower_ext.report.content import Rounds

__all__ = ["MOST_ROUNDS", "rounds_of", "told"]

MOST_ROUNDS = 200
"""Rounds of a strategy on a page; of more, the first ones are shown and the longest."""


def rounds_of(timelines: Mapping[str, Sequence[Mapping[str, Any]]]) -> Rounds:
    """Return the rounds of a page.

    Parameters
    ----------
    timelines : Mapping[str, Sequence[Mapping[str, Any]]]
        By strategy, what ``RoundTimeline.to_json`` has written.

    Returns
    -------
    Rounds
        The same with a sentence each, ``"told"``; rounds beyond :data:`MOST_ROUNDS`
        are left out.
    """
    shown: dict[str, list[dict[str, Any]]] = {}
    left_out = 0
    for strategy, rounds in timelines.items():
        half = MOST_ROUNDS // 2
        longest = sorted(rounds[half:], key=lambda each: -each["end"])[:half]
        kept = [*rounds[:half], *longest]
        kept.sort(key=lambda each: each["server_round"])
        left_out += len(rounds) - len(kept)
        shown[strategy] = [{**each, "told": told(each)} for each in kept]
    return Rounds(shown, left_out)


def told(found: Mapping[str, Any]) -> str:
    """Return a round in words."""
    decoded, stage_two = found["decoded_at"], found["stage_two_at"]
    if decoded is not None:
        words = [f"Decoded after {decoded:.2f} s."]
    else:
        words = [f"Ended after {found['end']:.2f} s without decoding."]
    if found["skipped"]:
        words.append("Too little had come back: the model was kept.")
    if stage_two is not None:
        words.append(f"Stage two began at {stage_two:.2f} s.")
    by_fate: dict[str, set[int]] = {}
    for each in found["dispatches"]:
        by_fate.setdefault(each["fate"], set()).add(each["worker"])
    for fate, said in (
        ("late", "answered after the round was over"),
        ("unfinished", "did not answer"),
        ("failed", "failed"),
        ("rejected", "sent replies that were refused"),
    ):
        if fate in by_fate:
            nodes = [str(worker) for worker in sorted(by_fate[fate])]
            many = "Nodes" if len(nodes) > 1 else "Node"
            words.append(f"{many} {', '.join(nodes)} {said}.")
    if by_fate.keys() <= {"used", "unused"}:
        words.append("No node straggled.")
    return " ".join(words)
