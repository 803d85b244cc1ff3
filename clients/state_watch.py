"""A warning for train functions that keep something in ``context.state``."""

from __future__ import annotations

from logging import WARNING

from flwr.app import ArrayRecord, RecordDict
from flwr.supercore import log

__all__ = ["StateWatch"]


class StateWatch:
    """Notices whether a train function changed ``context.state``; warns once.

    Coded training calls the train function once per partition, and the next round may
    call it for the same partition on another node: what it keeps does not follow the
    partition, and the result may come to depend on who computed it.

    Parameters
    ----------
    state : RecordDict
        The state before the call. Arrays are compared by their bytes objects and other
        records by their values, so watching a state of arrays copies nothing.
    """

    _warned = False

    def __init__(self, state: RecordDict) -> None:
        self._before = _snapshot(state)

    def check(self, state: RecordDict) -> None:
        """Log a warning, once per process, if ``state`` is not what it was.

        Parameters
        ----------
        state : RecordDict
            The state after the call.
        """
        if StateWatch._warned or _snapshot(state) == self._before:
            return
        StateWatch._warned = True
        log(
            WARNING,
            "The train function changed `context.state`. In coded training it runs "
            "once per assigned partition, and a partition may be trained on another "
            "node next round, so the state does not follow the partition.",
        )


def _snapshot(state: RecordDict) -> dict[str, dict[str, object]]:
    """Return what is compared: equality of identical bytes objects costs nothing."""
    return {
        name: {
            key: list(value) if isinstance(value, list) else value
            for key, value in record.items()
        }
        if not isinstance(record, ArrayRecord)
        else {key: array.data for key, array in record.items()}
        for name, record in state.items()
    }
