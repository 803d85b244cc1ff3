"""What a DSSD evaluation has measured, as sums that add up over prompts and nodes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.generation import Generation
from flower_ext.speculative.latency import LatencyHistogram
from flower_ext.speculative.records import TotalsRecord, key_of, perplexity, ratio

__all__ = ["DSSDTotals"]

_NO_LATENCIES = LatencyHistogram()

_PARTS_OF = (
    ("accepted", "examined"),
    ("examined", "drafted"),
    ("opening_bytes", "uplink_bytes"),
    ("fallback_tokens", "num_tokens"),
    ("scored_tokens", "num_tokens"),
    ("compared_tokens", "num_tokens"),
    ("agreeing_tokens", "compared_tokens"),
)


@dataclass(frozen=True)
class DSSDTotals(TotalsRecord):
    """The sums over some generated texts.

    In a ``MetricRecord`` every field has its name with hyphens.

    Parameters
    ----------
    num_prompts, num_tokens : int
        Texts, and the tokens generated in them.
    seconds : float
        From each text's opening to its last token, added up.
    rounds, drafted, examined, accepted, drafted_ahead, discarded, questions, \
fallback_tokens, reconnections : int
        As :class:`~flower_ext.speculative.Generation` has them.
    opening_bytes, uplink_bytes, downlink_bytes : int
        What travelled; the opening is part of the uplink.
    drafting_seconds, verification_seconds, transmission_seconds : float
        Where the time went.
    scored_tokens : int
        Tokens whose likelihood under the target is known; none of a text that the edge
        was lost in.
    log_likelihood : float
        The sum of their log-probabilities under the target's own distribution, before
        any warping, in nats; at most 0.
    compared_tokens : int
        Tokens of greedy texts compared with the target's.
    agreeing_tokens : int
        Of them, those that the target, given the same text before, would choose.
    latency_histogram : LatencyHistogram
        Seconds per text.
    token_latency_histogram : LatencyHistogram
        Seconds per token; every token counts, with the mean of its text.
    """

    parts_of: ClassVar[tuple[tuple[str, str], ...]] = _PARTS_OF

    num_prompts: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    rounds: int = 0
    drafted: int = 0
    examined: int = 0
    accepted: int = 0
    drafted_ahead: int = 0
    discarded: int = 0
    questions: int = 0
    fallback_tokens: int = 0
    reconnections: int = 0
    opening_bytes: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    drafting_seconds: float = 0.0
    verification_seconds: float = 0.0
    transmission_seconds: float = 0.0
    scored_tokens: int = 0
    log_likelihood: float = 0.0
    compared_tokens: int = 0
    agreeing_tokens: int = 0
    latency_histogram: LatencyHistogram = _NO_LATENCIES
    token_latency_histogram: LatencyHistogram = _NO_LATENCIES

    @classmethod
    def of(cls, generation: Generation, **scores: Any) -> DSSDTotals:
        """Return the totals of one text.

        Parameters
        ----------
        generation : Generation
            The text.
        **scores : Any
            `scored_tokens`, `log_likelihood`, `compared_tokens`, `agreeing_tokens`.
        """
        count = len(generation.tokens)
        taken = {
            entry.name: getattr(generation, entry.name)
            for entry in fields(cls)
            if hasattr(generation, entry.name)
        }
        return cls(
            num_prompts=1,
            num_tokens=count,
            latency_histogram=LatencyHistogram.of([generation.seconds]),
            token_latency_histogram=LatencyHistogram.of(
                [generation.seconds / count], count
            ),
            **taken,
            **scores,
        )

    def _check(self) -> None:
        """Raise if numbers contradict one another."""
        super()._check()
        for name, histogram in (
            ("num_prompts", self.latency_histogram),
            ("num_tokens", self.token_latency_histogram),
        ):
            if histogram.total != getattr(self, name):
                raise InvalidInputError(
                    f"A histogram counts {histogram.total} latencies, but "
                    f"{key_of(name)} is {getattr(self, name)}."
                )

    def rates(self) -> dict[str, float]:
        """Return what the sums say, as ratios and quantiles.

        Returns
        -------
        dict[str, float]
            Tokens per second and text, the acceptance rate, tokens per round, bytes
            per token (the opening counts in the uplink), the 50th and 95th percentile
            of the latencies in seconds, the perplexity under the target and the greedy
            agreement with it; nan where there is nothing to tell it from.
        """
        tokens = self.num_tokens
        per_prompt, per_token = self.latency_histogram, self.token_latency_histogram
        return {
            "tokens-per-second": ratio(tokens, self.seconds),
            "acceptance-rate": ratio(self.accepted, self.examined),
            "tokens-per-round": ratio(tokens - self.fallback_tokens, self.rounds),
            "uplink-bytes-per-token": ratio(self.uplink_bytes, tokens),
            "downlink-bytes-per-token": ratio(self.downlink_bytes, tokens),
            "latency-p50": per_prompt.quantile(0.5),
            "latency-p95": per_prompt.quantile(0.95),
            "token-latency-p50": per_token.quantile(0.5),
            "token-latency-p95": per_token.quantile(0.95),
            "perplexity": perplexity(self.log_likelihood, self.scored_tokens),
            "greedy-agreement": ratio(self.agreeing_tokens, self.compared_tokens),
        }
