"""What an EdgePrompt evaluation has measured, as sums over prompts and nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from flower_ext.edgeprompt.completion import Completion
from flower_ext.edgeprompt.loader import LoadReport
from flower_ext.edgeprompt.precision import Precision
from flower_ext.errors import InvalidInputError
from flower_ext.speculative.latency import LatencyHistogram
from flower_ext.speculative.records import TotalsRecord, perplexity, ratio

__all__ = ["EdgePromptTotals"]

_NO_LATENCIES = LatencyHistogram()

# Largest, not summed, when totals are added.
_LARGEST = frozenset({"largest_error"})

_PARTS_OF = (
    ("first_token_seconds", "seconds"),
    ("num_prompts", "num_tokens"),
    ("scored_tokens", "num_tokens"),
    ("compared_tokens", "scored_tokens"),
    ("agreeing_tokens", "compared_tokens"),
)

_SOURCES = (
    "blocks_in_memory",
    "blocks_in_store",
    "blocks_computed",
    *(f"blocks_fetched_{precision.value}" for precision in Precision),
)


@dataclass(frozen=True)
class EdgePromptTotals(TotalsRecord):
    """The sums over some generated texts.

    In a ``MetricRecord`` every field has its name with hyphens. There is no text in it,
    and nothing of a single prompt.

    Parameters
    ----------
    num_prompts, num_tokens : int
        Texts, and the tokens generated in them.
    prompts_refused : int
        Prompts that there is no text of: too long for the model behind the shared
        part, or not to be put into tokens. The shared part is loaded for them all the
        same; of the other sums they are in those of blocks and bytes alone.
    seconds : float
        From each prompt's arrival to its last token, added up.
    first_token_seconds : float
        From each prompt's arrival to its first token: loading the shared part included.
    blocks, blocks_in_memory, blocks_in_store, blocks_computed : int
        Blocks of the shared part, counted for every prompt: all, those in memory from
        the prompt before, those that the node's store held, those that it computed.
    blocks_fetched_exact, blocks_fetched_fp16, blocks_fetched_bf16, \
blocks_fetched_int8, blocks_fetched_int4 : int
        Those that were fetched, by precision.
    bytes_fetched : int
        Encoded bytes that came, those of abandoned blocks included.
    largest_error : float
        Relative, of any block that was used; the largest, not the sum.
    scored_tokens : int
        Generated tokens that the whole prompt was compared on.
    log_likelihood, whole_log_likelihood : float
        The sums of their log-probabilities under the spliced prompt, and under the
        whole one computed on the node, before any warping, in nats; at most 0.
    compared_tokens : int
        Of them, tokens of greedy texts.
    agreeing_tokens : int
        Of them, those that the whole prompt, given the same text before, would choose.
    first_token_histogram : LatencyHistogram
        Seconds to the first token, per prompt.
    """

    parts_of: ClassVar[tuple[tuple[str, str], ...]] = _PARTS_OF
    largest: ClassVar[frozenset[str]] = _LARGEST

    num_prompts: int = 0
    num_tokens: int = 0
    prompts_refused: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    blocks: int = 0
    blocks_in_memory: int = 0
    blocks_in_store: int = 0
    blocks_computed: int = 0
    blocks_fetched_exact: int = 0
    blocks_fetched_fp16: int = 0
    blocks_fetched_bf16: int = 0
    blocks_fetched_int8: int = 0
    blocks_fetched_int4: int = 0
    bytes_fetched: int = 0
    largest_error: float = 0.0
    scored_tokens: int = 0
    log_likelihood: float = 0.0
    whole_log_likelihood: float = 0.0
    compared_tokens: int = 0
    agreeing_tokens: int = 0
    first_token_histogram: LatencyHistogram = _NO_LATENCIES

    @classmethod
    def of(cls, completion: Completion, **scores: Any) -> EdgePromptTotals:
        """Return the totals of one text.

        Parameters
        ----------
        completion : Completion
            The text.
        **scores : Any
            `scored_tokens`, `log_likelihood`, `whole_log_likelihood`,
            `compared_tokens`, `agreeing_tokens`.
        """
        first = completion.time_to_first_token
        return cls(
            num_prompts=1,
            num_tokens=len(completion.tokens),
            seconds=completion.seconds,
            first_token_seconds=first,
            first_token_histogram=LatencyHistogram.of([first]),
            **_loaded(completion.report),
            **scores,
        )

    @classmethod
    def of_refused(cls, report: LoadReport) -> EdgePromptTotals:
        """Return the totals of one prompt that was refused.

        Parameters
        ----------
        report : LoadReport
            Of the shared part, loaded for it all the same.
        """
        return cls(prompts_refused=1, **_loaded(report))

    def _check(self) -> None:
        """Raise if numbers contradict one another."""
        super()._check()
        found = sum(getattr(self, name) for name in _SOURCES)
        if found != self.blocks:
            raise InvalidInputError(
                f"{found} blocks came from somewhere, but blocks is {self.blocks}."
            )
        if self.first_token_histogram.total != self.num_prompts:
            raise InvalidInputError(
                f"The histogram counts {self.first_token_histogram.total} first "
                f"tokens, but num-prompts is {self.num_prompts}."
            )

    @property
    def blocks_fetched(self) -> int:
        """Blocks fetched, in whichever precision."""
        return sum(
            getattr(self, f"blocks_fetched_{precision.value}")
            for precision in Precision
        )

    def rates(self) -> dict[str, float]:
        """Return what the sums say, as ratios and quantiles.

        Returns
        -------
        dict[str, float]
            Tokens per second, and those after the first per second after the first; the
            mean seconds to the first token and their 50th and 95th percentile; of the
            blocks that the prompt before has not left in memory, the share that the
            node's store held; bytes fetched per prompt; the greedy agreement with the
            whole prompt, the perplexity of the texts under either, and by how much that
            under the spliced prompt is larger; nan where there is nothing to tell it
            from.
        """
        first = self.first_token_histogram
        spliced = perplexity(self.log_likelihood, self.scored_tokens)
        whole = perplexity(self.whole_log_likelihood, self.scored_tokens)
        return {
            "tokens-per-second": ratio(self.num_tokens, self.seconds),
            "later-tokens-per-second": ratio(
                self.num_tokens - self.num_prompts,
                self.seconds - self.first_token_seconds,
            ),
            "time-to-first-token": ratio(self.first_token_seconds, self.num_prompts),
            "time-to-first-token-p50": first.quantile(0.5),
            "time-to-first-token-p95": first.quantile(0.95),
            "cache-hit-rate": ratio(
                self.blocks_in_store, self.blocks - self.blocks_in_memory
            ),
            "bytes-fetched-per-prompt": ratio(self.bytes_fetched, self.num_prompts),
            "greedy-agreement": ratio(self.agreeing_tokens, self.compared_tokens),
            "perplexity": spliced,
            "whole-perplexity": whole,
            "perplexity-difference": spliced - whole,
        }


def _loaded(report: LoadReport) -> dict[str, Any]:
    """Return what the totals have of a load."""
    fetched = {
        f"blocks_fetched_{precision.value}": report.fetched[precision]
        for precision in Precision
    }
    return {
        "blocks": report.blocks,
        "blocks_in_memory": report.in_memory,
        "blocks_in_store": report.in_store,
        "blocks_computed": report.computed,
        "bytes_fetched": report.bytes_fetched,
        "largest_error": report.largest_error,
        **fetched,
    }
