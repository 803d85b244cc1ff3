"""The linear combination that a coded reply carries, over a model's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from flower_ext.coding.payload import (
    accumulate,
    accumulation_dtype,
    delta,
    payload_dtype,
)
from flower_ext.errors import InvalidInputError

__all__ = ["CodedCombination"]


class CodedCombination:
    """The running sum ``sum_k b_k n_k delta_k``.

    Parameters
    ----------
    received : ArrayRecord
        The arrays that the strategy sent: what training started from.

    Raises
    ------
    InvalidInputError
        If an array is of a dtype that cannot be summed.
    """

    def __init__(self, received: ArrayRecord) -> None:
        self._received = received
        self._payload_dtypes: dict[str, np.dtype[Any]] = {}
        self._totals: dict[str, NDArray[Any]] = {}
        for key, array in received.items():
            start = array.numpy()
            self._payload_dtypes[key] = payload_dtype(start.dtype)
            self._totals[key] = np.zeros(start.shape, accumulation_dtype(start.dtype))

    def add(self, trained: ArrayRecord, weight: float, partition: int) -> None:
        """Add ``weight`` times the change that training on ``partition`` made.

        Parameters
        ----------
        trained : ArrayRecord
            The arrays after training, with the keys and shapes of the received ones.
        weight : float
            ``b_k n_k``.
        partition : int
            The partition, for the message of an error.

        Raises
        ------
        InvalidInputError
            If keys, shapes or kinds differ from the received arrays, or a trained
            array holds NaN or infinity.
        """
        if trained.keys() != self._received.keys():
            raise InvalidInputError(
                f"The train function's arrays for partition {partition} do not have "
                f"the keys it received: missing "
                f"{sorted(self._received.keys() - trained.keys())}, unexpected "
                f"{sorted(trained.keys() - self._received.keys())}. Return the whole "
                "model, as for FedAvg."
            )
        for key, total in self._totals.items():
            after = trained[key].numpy()
            if after.dtype.kind in "fc" and not np.isfinite(after).all():
                raise InvalidInputError(
                    f"Training on partition {partition} left NaN or infinity in the "
                    f"array '{key}'. Lower the learning rate or clip the gradients."
                )
            try:
                change = delta(after, self._received[key].numpy())
            except InvalidInputError as error:
                raise InvalidInputError(
                    f"The array '{key}' of partition {partition}: {error}"
                ) from error
            accumulate(total, change, weight)

    def to_record(self) -> ArrayRecord:
        """Return the sum, rounded once to payload dtypes; the sum is given up.

        Returns
        -------
        ArrayRecord
            The keys and shapes of the received arrays.

        Raises
        ------
        InvalidInputError
            If a sum overflows its payload dtype.
        """
        record = ArrayRecord()
        for key, dtype in self._payload_dtypes.items():
            with np.errstate(over="ignore"):
                payload = self._totals.pop(key).astype(dtype)
            if not np.isfinite(payload).all():
                raise InvalidInputError(
                    f"The weighted change of the array '{key}' overflows "
                    f"{payload.dtype}: has training diverged?"
                )
            record[key] = Array(payload)
        return record
