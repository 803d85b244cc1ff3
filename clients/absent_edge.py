"""The edge of a node that goes on without one: every text is the drafter's alone."""

from __future__ import annotations

from flower_ext.network.clocks import WallClock
from flower_ext.speculative import EdgeSession, VerifierUnavailableError
from flower_ext.speculative.choices import Choices
from flower_ext.speculative.messages import Opening

__all__ = ["AbsentEdge"]


class AbsentEdge:
    """An edge that has been waited for already.

    Parameters
    ----------
    vocab_size : int
        The ids that the drafter draws from.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.max_length = None
        self.eos_token_ids: tuple[int, ...] = ()
        self.clock = WallClock()

    def start(self, opening: Opening, choices: Choices) -> EdgeSession:
        """Raise, without any wait.

        Raises
        ------
        VerifierUnavailableError
            Always.
        """
        raise VerifierUnavailableError(
            f"The edge has not answered before text {opening.session} was begun."
        )
