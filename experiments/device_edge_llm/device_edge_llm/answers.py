"""What EdgePrompt has measured in a run: a table, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flower_ext.report import FORMAT

_HEADS = (
    "round",
    "first token, ms: p50",
    "p95",
    "tokens/s",
    "in store",
    "bytes/prompt",
    "largest error",
    "agreement",
    "perplexity",
    "whole prompt",
)


@dataclass(frozen=True)
class Answers:
    """What a round's answers took, and how near they are to the whole prompt's.

    Parameters
    ----------
    server_round : int
        The round, from 1.
    nodes, prompts : int
        How many nodes answered how many prompts.
    first_token_p50, first_token_p95 : float
        Seconds until the first token, over the simulated link, computing included.
    tokens_per_second : float
        Likewise, of whole texts.
    cache_hit_rate : float
        Share of the public text's blocks that nodes had from before; nan if all were
        in memory.
    bytes_per_prompt : float
        Fetched of the public text's KV.
    largest_error : float
        Relative, of a block that was used.
    greedy_agreement : float
        Share of the tokens that the whole prompt, computed on the node, gives too.
    perplexity, whole_perplexity : float
        Of the answers, under the spliced and under the whole prompt.
    blocks_in_memory, blocks_in_store, blocks_computed, blocks_fetched_exact, \
blocks_fetched_fp16, blocks_fetched_bf16, blocks_fetched_int8, blocks_fetched_int4 : int
        Where the public text's blocks came from, counted for every prompt.
    """

    server_round: int
    nodes: int
    prompts: int
    first_token_p50: float
    first_token_p95: float
    tokens_per_second: float
    cache_hit_rate: float
    bytes_per_prompt: float
    largest_error: float
    greedy_agreement: float
    perplexity: float
    whole_perplexity: float
    blocks_in_memory: int = 0
    blocks_in_store: int = 0
    blocks_computed: int = 0
    blocks_fetched_exact: int = 0
    blocks_fetched_fp16: int = 0
    blocks_fetched_bf16: int = 0
    blocks_fetched_int8: int = 0
    blocks_fetched_int4: int = 0

    @classmethod
    def from_metrics(
        cls, server_round: int, metrics: Mapping[str, Any], prefix: str
    ) -> Answers:
        """Read a round's inference metrics.

        Parameters
        ----------
        server_round : int
            The round.
        metrics : Mapping[str, Any]
            An entry of ``WithInference.inference_metrics``.
        prefix : str
            Of the evaluation.
        """

        def number(name: str) -> float:
            return float(metrics.get(prefix + name, math.nan))

        return cls(
            server_round=server_round,
            nodes=int(metrics[f"{prefix}num-nodes"]),
            prompts=int(metrics[f"{prefix}num-prompts"]),
            first_token_p50=number("time-to-first-token-p50"),
            first_token_p95=number("time-to-first-token-p95"),
            tokens_per_second=number("tokens-per-second"),
            cache_hit_rate=number("cache-hit-rate"),
            bytes_per_prompt=number("bytes-fetched-per-prompt"),
            largest_error=number("largest-error"),
            greedy_agreement=number("greedy-agreement"),
            perplexity=number("perplexity"),
            whole_perplexity=number("whole-perplexity"),
            **{
                each.name: int(metrics[prefix + each.name.replace("_", "-")])
                for each in fields(cls)
                if each.name.startswith("blocks_")
            },
        )

    def cells(self) -> tuple[str, ...]:
        """Return a row of the table."""
        return (
            str(self.server_round),
            f"{1e3 * self.first_token_p50:.1f}",
            f"{1e3 * self.first_token_p95:.1f}",
            f"{self.tokens_per_second:.1f}",
            f"{self.cache_hit_rate:.0%}",
            f"{self.bytes_per_prompt:.0f}",
            f"{self.largest_error:.1e}",
            f"{self.greedy_agreement:.3f}",
            f"{self.perplexity:.3f}",
            f"{self.whole_perplexity:.3f}",
        )


def answer_table(answers: Sequence[Answers]) -> str:
    """Return rounds as a table of plain text."""
    rows = [_HEADS, *(each.cells() for each in answers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def write_answers(
    folder: Path, answers: Sequence[Answers], settings: Mapping[str, object]
) -> Path:
    """Write ``edgeprompt.json``, and return its path; what is not known is null."""
    rounds = [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(each).items()
        }
        for each in answers
    ]
    path = folder / "edgeprompt.json"
    content = {
        "format": FORMAT,
        "kind": "edgeprompt",
        "settings": dict(settings),
        "rounds": rounds,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
