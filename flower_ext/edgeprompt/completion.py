"""What comes of a prompt, and what it took."""

from __future__ import annotations

from dataclasses import dataclass

from flower_ext.edgeprompt.loader import LoadReport
from flower_ext.edgeprompt.splice import Layout

__all__ = ["Completion"]


@dataclass(frozen=True)
class Completion:
    """A text that was generated, and what it took.

    Parameters
    ----------
    tokens : tuple[int, ...]
        Without the prompt, and without padding after the token that ended it.
    text : str
        What they say, special tokens left out.
    time_to_first_token : float
        Seconds from the call until the first token's logits were there: loading the
        prefix included, and shared by all rows that were generated at once.
    seconds : float
        Until the last token of these rows was there.
    layout : Layout | None
        Where the private tails lay; None: nothing was shared.
    shared_kv_bytes, private_kv_bytes : int
        The KV of the prefix, once for the whole batch, and that of the tails of the
        rows that were generated at once, with the room that they have.
    report : LoadReport
        Where the prefix's blocks came from.
    """

    tokens: tuple[int, ...]
    text: str
    time_to_first_token: float
    seconds: float
    layout: Layout | None
    shared_kv_bytes: int
    private_kv_bytes: int
    report: LoadReport

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second after the first; nan if there is but one."""
        if len(self.tokens) < 2:
            return float("nan")
        return (len(self.tokens) - 1) / (self.seconds - self.time_to_first_token)
