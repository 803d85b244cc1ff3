"""Time to first token of a device that has nothing, over a link on a virtual clock."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flower_ext.edgeprompt import EdgePrompt, KVStore, Precision, PromptHierarchy
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.precision import EncodedBlock
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Arrival, Wanted
from flower_ext.network import Link, VirtualClock

__all__ = ["WAYS", "Cold", "Fetched"]

ADAPTIVE = "EdgePrompt, adaptive"
RECOMPUTE = "recompute"
FIXED = {"fetch exact": Precision.EXACT, "fetch int8": Precision.INT8}
WAYS = (ADAPTIVE, RECOMPUTE, *FIXED)
"""Choose on the way, compute all, or fetch all and then begin."""

_SERVED = (Precision.EXACT, Precision.FP16, Precision.BF16, Precision.INT8)


@dataclass(frozen=True)
class Fetched:
    """What it took to begin.

    Parameters
    ----------
    seconds : float
        Until the first token's logits.
    computed, fetched : int
        Blocks of the prefix.
    nbytes : int
        Bytes on the wire that came.
    """

    seconds: float
    computed: int
    fetched: int
    nbytes: int


class Cold:
    """An edge that has a prompt's prefix in all precisions, and a device without it.

    Parameters
    ----------
    model : PreTrainedModel
        Both sides'.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    prompt : PromptHierarchy
        With shared segments and a private one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptHierarchy,
    ) -> None:
        self._model, self._tokenizer, self._prompt = model, tokenizer, prompt
        publisher = EdgePrompt(model, tokenizer, memory_bytes=0)
        self._prefix = publisher.publish(prompt, _SERVED)
        self._service = SegmentService(
            model, publisher.store, identity=publisher.identity
        )

    def first_token(self, way: str, link: Link) -> Fetched:
        """Begin to answer, and say what that took.

        Computation counts as long as it takes, waiting for the link passes at once,
        and what the edge does takes the device no time.

        Parameters
        ----------
        way : str
            One of :data:`WAYS`.
        link : Link
            Between them, from its time 0 on.
        """
        timer = _Timer()
        clock, store = VirtualClock(timer), KVStore()
        source = LinkedSource(self._service, link, clock)
        engine = EdgePrompt(
            self._model,
            self._tokenizer,
            store=store,
            source=source if way == ADAPTIVE else None,
            # Whoever has decided to fetch takes the error that comes with it.
            max_error=math.inf if way in FIXED else 0.02,
            memory_bytes=0,
            clock=clock,
        )
        timer.start()
        fetched = 0
        if way in FIXED:
            fetched = self._fetch_all(source, FIXED[way], store)
        waited = clock.now()
        found = engine.generate(self._prompt, 1, do_sample=False)
        report = found.report
        return Fetched(
            waited + found.time_to_first_token,
            report.computed,
            fetched + sum(report.fetched.values()),
            source.bytes_received,
        )

    def _fetch_all(
        self, source: LinkedSource, precision: Precision, store: KVStore
    ) -> int:
        """Fetch every block into the store; return how many."""
        blocks = self._prefix.blocks
        missing = {Wanted(index, precision) for index in range(len(blocks))}
        come: dict[Wanted, list[Arrival]] = {wanted: [] for wanted in missing}
        source.request(self._prefix, sorted(missing, key=lambda wanted: wanted.block))
        while missing:
            for arrival in source.arrived(math.inf):
                wanted, header = arrival.wanted, arrival.header
                layers = come[wanted]
                layers.append(arrival)
                if len(layers) == header.shape.layers:
                    data = tuple(each.data for each in layers)
                    encoded = EncodedBlock(header.shape, precision, header.error, data)
                    store.put(blocks[wanted.block].addresses[precision], encoded)
                    missing.remove(wanted)
        return len(blocks)


class _Timer:
    """Time that stands until it is started: making an engine is none of it."""

    def __init__(self) -> None:
        self._begun: float | None = None

    def start(self) -> None:
        self._begun = time.perf_counter()

    def __call__(self) -> float:
        return 0.0 if self._begun is None else time.perf_counter() - self._begun
