"""Whether a model's weights are still those that were digested.

A whole digest takes a second per gigabyte, too long before every prompt. Between two of
them a few elements of every tensor are looked at, and what PyTorch counts itself.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import torch
from transformers import PreTrainedModel

__all__ = ["ELEMENTS", "WeightSamples"]

ELEMENTS = 64
"""How many elements of a tensor are looked at, spread over all of it."""

_Key = tuple[torch.device, torch.dtype]


class WeightSamples:
    """Looks at elements of all parameters and buffers, again and again.

    Writing to a tensor's ``.data`` is counted nowhere, so that values have to be looked
    at. Those of all tensors of a device and a dtype are gathered in one step, and come
    from a GPU in one transfer.

    Parameters
    ----------
    model : PreTrainedModel
        Whose they are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._tensors: tuple[tuple[int, int], ...] = ()
        self._views: dict[_Key, list[torch.Tensor]] = {}

    def state(self) -> tuple[object, ...]:
        """Return what differs when weights are replaced or written to.

        Not seen is a change, past PyTorch's count of writes, of elements that are not
        looked at: all but :data:`ELEMENTS` of a larger tensor.
        """
        tensors = [*self._model.parameters(), *self._model.buffers()]
        found = tuple((id(tensor), tensor.data_ptr()) for tensor in tensors)
        if found != self._tensors:
            self._tensors, self._views = found, _views(tensors)
        counts = [-1 if t.is_inference() else t._version for t in tensors]
        return (found, tuple(counts), *map(_bytes_of, self._views.values()))


def _views(tensors: list[torch.Tensor]) -> dict[_Key, list[torch.Tensor]]:
    """Return each tensor's elements, as they lie in memory."""
    found: dict[_Key, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        if not tensor.numel():
            continue
        extents = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in extents)
        step = max(1, extent // ELEMENTS)
        # Not the same column of every row.
        width = tensor.shape[-1] if tensor.ndim else 1
        step = next(s for s in itertools.count(step) if math.gcd(s, width) == 1)
        count = -(-extent // step)
        view = tensor.detach().as_strided((count,), (step,), tensor.storage_offset())
        found[tensor.device, tensor.dtype].append(view)
    return found


@torch.no_grad()
def _bytes_of(views: list[torch.Tensor]) -> bytes:
    gathered = torch.cat(views).view(torch.uint8).cpu()
    return bytes(gathered.numpy())
