"""Gradient codes: redundant assignments from which any few replies may go missing.

A code is an encoding matrix B (workers x partitions): worker i replies with row i's
combination of the partitions' updates, and the replies decode when some w, the decoding
vector, has w^T B = 1^T (Tandon et al. 2017, arXiv:1612.03301). The families are
:class:`Uncoded`, :class:`FractionalRepetition`, :class:`CyclicRepetition` and
:class:`HeterogeneityAware`; :func:`decode` and :func:`decode_least_squares` find the
decoding vector of a set of replies, exactly or as closely as they allow, and
:class:`IncrementalDecoder` follows them as they arrive. :class:`Assignment` is one row
of B as it travels to a worker. Everything here is pure NumPy in float64.
"""

from typing import TYPE_CHECKING

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.cyclic import CyclicRepetition
from flower_ext.coding.fractional import FractionalRepetition
from flower_ext.coding.heterogeneity_aware import HeterogeneityAware
from flower_ext.coding.uncoded import Uncoded
from flower_ext.late import late

if TYPE_CHECKING:
    from flower_ext.coding.decoding import (
        UndecodableError,
        decode,
        decode_least_squares,
    )
    from flower_ext.coding.incremental import IncrementalDecoder

__all__ = [
    "Assignment",
    "CyclicRepetition",
    "FractionalRepetition",
    "HeterogeneityAware",
    "IncrementalDecoder",
    "Uncoded",
    "UndecodableError",
    "decode",
    "decode_least_squares",
]

# Clients do not decode, and these need SciPy.
__getattr__ = late(
    __name__,
    {
        "IncrementalDecoder": "flower_ext.coding.incremental",
        "UndecodableError": "flower_ext.coding.decoding",
        "decode": "flower_ext.coding.decoding",
        "decode_least_squares": "flower_ext.coding.decoding",
    },
)
