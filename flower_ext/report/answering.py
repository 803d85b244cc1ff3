"""EdgePrompt: where the blocks of a shared prompt came from, and what that took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flower_ext.report.content import Figure, Section, Table, bars, line

__all__ = ["answering_sections", "answering_summary"]

_SUMMARY = {
    "server_round": "round",
    "first_token_p50": "first token, median (s)",
    "first_token_p95": "first token, 95th percentile (s)",
    "tokens_per_second": "tokens per second",
    "cache_hit_rate": "found in store",
    "bytes_per_prompt": "bytes fetched per prompt",
    "largest_error": "largest error",
    "greedy_agreement": "agreement with the whole prompt",
    "perplexity": "perplexity",
    "whole_perplexity": "of the whole prompt",
}

_SOURCES = {
    "blocks_in_memory": "in memory",
    "blocks_in_store": "in the node's store",
    "blocks_fetched_exact": "fetched, exact",
    "blocks_fetched_fp16": "fetched, fp16",
    "blocks_fetched_bf16": "fetched, bf16",
    "blocks_fetched_int8": "fetched, int8",
    "blocks_fetched_int4": "fetched, int4",
    "blocks_computed": "recomputed",
}


def answering_summary(found: Mapping[str, Any]) -> Table:
    """Return a line per round."""
    return Table(
        [*_SUMMARY.values()],
        [[each.get(name) for name in _SUMMARY] for each in found["rounds"]],
    )


def answering_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return what is to be seen of EdgePrompt's answers.

    Parameters
    ----------
    found : Mapping[str, Any]
        ``edgeprompt.json`` of the app device_edge_llm.
    """
    rounds = found["rounds"]
    numbers = [each["server_round"] for each in rounds]
    used = {
        name: said for name, said in _SOURCES.items() if any(e[name] for e in rounds)
    }
    by_round: dict[str, Any] = {"xaxis": {"title": {"text": "round"}, "dtick": 1}}
    figures = [
        Figure(
            "blocks",
            "Where the shared prompt's blocks came from",
            "A prompt's shared part is cut into blocks. A node keeps each from the "
            "prompt before, finds it in its store, fetches it in some precision, or "
            "computes it anew, whichever is fastest within the error allowed.",
            [
                bars(said, numbers, [each[name] for each in rounds], i)
                for i, (name, said) in enumerate(used.items())
            ],
            {
                **by_round,
                "barmode": "stack",
                "yaxis": {"title": {"text": "blocks, over all prompts"}},
            },
            Table(
                ["round", *used.values()],
                [[e["server_round"], *(e[name] for name in used)] for e in rounds],
            ),
        ),
        Figure(
            "first-token",
            "Time until the first token",
            "Seconds from a prompt's arrival, over the simulated link, computing "
            "included.",
            [
                line("median", numbers, [e["first_token_p50"] for e in rounds], 0),
                line(
                    "95th percentile",
                    numbers,
                    [e["first_token_p95"] for e in rounds],
                    1,
                ),
            ],
            {
                **by_round,
                "yaxis": {"title": {"text": "seconds"}, "rangemode": "tozero"},
            },
            Table(
                ["round", "median (s)", "95th percentile (s)"],
                [
                    [e["server_round"], e["first_token_p50"], e["first_token_p95"]]
                    for e in rounds
                ],
            ),
        ),
        Figure(
            "fetched",
            "Bytes fetched",
            "Of the shared part's KV cache, per prompt.",
            [bars("bytes", numbers, [e["bytes_per_prompt"] for e in rounds], 2)],
            {**by_round, "yaxis": {"title": {"text": "bytes per prompt"}}},
            Table(
                ["round", "bytes per prompt", "found in store"],
                [
                    [e["server_round"], e["bytes_per_prompt"], e["cache_hit_rate"]]
                    for e in rounds
                ],
            ),
        ),
    ]
    note = "Nodes report numbers alone: no private prompt, and no answer, left them."
    return [Section("Prompts with a shared part", note, figures)]
