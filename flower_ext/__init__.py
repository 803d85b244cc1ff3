"""flower-ext: coded training and device-edge inference for Flower federations.

Rooms: :mod:`flower_ext.strategies` (server side), :mod:`flower_ext.clients` (client
side), :mod:`flower_ext.edge` (the edge service), and pure algorithms that know nothing
of Flower: :mod:`flower_ext.coding`, :mod:`flower_ext.scheduling`,
:mod:`flower_ext.network`, :mod:`flower_ext.speculative`, :mod:`flower_ext.edgeprompt`
and :mod:`flower_ext.models`.
"""

from flower_ext.errors import FlowerExtError, InvalidInputError, PrivateSegmentError

__all__ = ["FlowerExtError", "InvalidInputError", "PrivateSegmentError"]
