"""Getting a prefix's KV into memory: from the store, from elsewhere, or by computing.

Everything that goes out goes out here, before the private text is looked at. What is
still on its way when the last block has begun to come is waited for layer by layer, and
nothing is asked for any more.

What is kept and learned then decides what the next prompt asks for, so it must not
depend on the private text, on how long it is, or on whether it fails. Of the last block
the link alone decides: each layer has to come within a time from the one before, by the
times at which they come, whenever somebody looks. A block that keeps to it is kept.
Otherwise the block is computed for this prompt, and nothing remains of it but what had
been kept before the private text was looked at.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flower_ext.edgeprompt.blocks import SharedBlock, SharedPrefix
from flower_ext.edgeprompt.device_time import device_time
from flower_ext.edgeprompt.errors import SourceError
from flower_ext.edgeprompt.loaded_prefix import LoadedPrefix, LoadReport
from flower_ext.edgeprompt.plan import Offer, OfferedBlock
from flower_ext.edgeprompt.precision import (
    EncodedBlock,
    Precision,
    decode_layer,
    encode,
    layer_nbytes,
)
from flower_ext.edgeprompt.prefill import (
    LayerKV,
    StoppedError,
    prefill,
    stops_within,
)
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.restoration import Restoration
from flower_ext.edgeprompt.source import Arrival, SegmentSource, Wanted
from flower_ext.edgeprompt.unfinished import UnfinishedBlock

if TYPE_CHECKING:
    from flower_ext.edgeprompt.loader import PrefixLoader

__all__ = ["Loading"]

_LOG = logging.getLogger(__name__)
# Tokens that a single row may have behind a prefix without a copy: a sixteenth of it,
# since the room is kept as long as the prefix, within these limits.
_LEAST_ROOM, _MOST_ROOM = 64, 512
# How many times as long as it takes to compute a block its next layer may take, and the
# least seconds: less may pass where nothing but other threads holds a layer up.
_PATIENCE = 2.0
_LEAST_PATIENCE = 0.1


@dataclass
class _Run:
    """The blocks of one level, and the memory that they are decoded to."""

    first: int
    blocks: Sequence[SharedBlock]
    kv: PrefixKV
    whole: bool

    @property
    def begin(self) -> int:
        return self.blocks[0].begin

    def holds(self, block: int) -> bool:
        return self.first <= block < self.first + len(self.blocks)


class Loading:
    """One prefix on its way into memory.

    Parameters
    ----------
    loader : PrefixLoader
        What this load has in common with others.
    prefix : SharedPrefix
        At least one block.
    all_at_once : bool
        Return when all is there, and no sooner.
    """

    def __init__(
        self, loader: PrefixLoader, prefix: SharedPrefix, all_at_once: bool
    ) -> None:
        self._of = loader
        self._prefix = prefix
        self._all_at_once = all_at_once
        self._report = LoadReport(blocks=len(prefix.blocks))
        self._errors: dict[int, float] = {}  # By block, where known.
        self._runs = self._make_runs()
        self._half: dict[Wanted, UnfinishedBlock] = {}
        self._state: Restoration | None = None
        self._asked: tuple[Wanted, ...] = ()
        self._requested = False
        self._begun: dict[int, int] = {}  # block -> layers that are decoded
        self._aside = 0.0  # Seconds of taking blocks while others were computed.
        self._patience = 0.0  # Seconds from a layer of the last block to the next.
        self._deadline = math.inf  # By when that has to come.

    def run(self) -> LoadedPrefix:
        """Load; return as soon as the private text may begin."""
        begin = self._now()
        if not all(run.whole for run in self._runs):
            blocks = self._prefix.blocks
            # Or one block might put another out that this prefix needs as well.
            with self._of.store.pinned(a for b in blocks for a in b.addresses.values()):
                self._gather()
        self._report.seconds = self._now() - begin
        parts = tuple(run.kv for run in self._runs)
        if self._state is None or self._state.finished:
            self._whole()
        else:
            self._leave_open(self._state)
        return LoadedPrefix(parts, self._report, self.settle)

    def _gather(self) -> None:
        """Get what is not in memory."""
        missing = [
            index
            for run in self._runs
            if not run.whole
            for index in range(run.first, run.first + len(run.blocks))
            if not self._from_store(index)
        ]
        if missing and self._of.source is not None and self._of.precisions:
            self._restore(missing, self._of.source)
        else:
            for index in missing:
                self._compute(index)

    def settle(self) -> None:
        """Wait until the last block is whole, or it is known that it will not be."""
        while self._of.open is self:
            self._take_last()

    def _make_runs(self) -> list[_Run]:
        """Return the memory for each level, that of an earlier load if there is one."""
        runs: list[_Run] = []
        blocks = self._prefix.blocks
        device = self._of.model.device
        first = 0
        while first < len(blocks):
            last = first
            while last < len(blocks) and blocks[last].level == blocks[first].level:
                last += 1
            own = blocks[first:last]
            name = _name(own)
            known = self._of.loaded.get(name)
            if known is not None:
                kv, error = known
                kv.wait_with(None)  # Whole, whatever became of another load.
                self._of.loaded.move_to_end(name)
                self._report.in_memory += len(own)
                self._has_error(range(first, last), error)
            else:
                tokens = own[-1].end - own[0].begin
                shape = self._prefix.identity.shape(tokens)
                room = min(max(tokens // 16, _LEAST_ROOM), _MOST_ROOM)
                kv = PrefixKV(shape, device, room=room)
            runs.append(_Run(first, own, kv, known is not None))
            first = last
        return runs

    def _whole(self) -> None:
        """All is there: remember it."""
        for run in self._runs:
            run.kv.wait_with(None)
            # What was computed behind inexact blocks is inexact, too.
            upto = range(run.first + len(run.blocks))
            error = max(self._errors.get(index, 0.0) for index in upto)
            self._of.remember(_name(run.blocks), run.kv, error)

    def _now(self) -> float:
        """Return the time, all that the device was given being done."""
        return device_time(self._of.clock, self._of.model.device)

    def _has_error(self, blocks: Iterable[int], error: float) -> None:
        """Take note of what blocks cost in fidelity."""
        self._errors |= dict.fromkeys(blocks, error)
        self._report.largest_error = max(self._report.largest_error, error)

    # -- one block --------------------------------------------------------------------

    def _run_of(self, block: int) -> _Run:
        return next(run for run in self._runs if run.holds(block))

    def _from_store(self, index: int) -> bool:
        """Decode a block from the store, in the finest precision that it has."""
        block = self._prefix.blocks[index]
        for precision in Precision:
            address = block.addresses[precision]
            if address not in self._of.store:
                continue
            found = self._of.store.get(address)
            if found is None or found.error > self._of.max_error:
                continue
            if found.shape != self._prefix.identity.shape(len(block.tokens)):
                continue
            self._decode_all(index, found)
            self._report.in_store += 1
            return True
        return False

    def _decode_all(self, index: int, encoded: EncodedBlock) -> None:
        for layer, data in enumerate(encoded.layers):
            self._decode(index, layer, data, encoded.precision)
        self._has_error([index], encoded.error)

    def _decode(
        self, index: int, layer: int, data: torch.Tensor, precision: Precision
    ) -> None:
        """Write a layer of a block to where it belongs."""
        block, run = self._prefix.blocks[index], self._run_of(index)
        tokens = slice(block.begin - run.begin, block.end - run.begin)
        decode_layer(
            data,
            self._prefix.identity.shape(len(block.tokens)),
            precision,
            run.kv.keys[layer][0, :, tokens],
            run.kv.values[layer][0, :, tokens],
        )

    def _prefill(
        self, index: int, useful: Callable[[], bool] | None = None
    ) -> list[LayerKV]:
        """Compute a block, all before it being there.

        Raises
        ------
        StoppedError
            If it was not useful any more.
        """
        block, run = self._prefix.blocks[index], self._run_of(index)
        before = [r.kv for r in self._runs if r.first < run.first]
        begin = block.begin - run.begin
        if begin:
            before.append(run.kv.head(begin))
        layers = prefill(self._of.model, block.tokens, before, useful)
        run.kv.fill(begin, layers)
        self._report.computed += 1
        return layers

    def _compute(self, index: int, useful: Callable[[], bool] | None = None) -> float:
        """Compute a block and keep it; return how long it took.

        Raises
        ------
        StoppedError
            If it was not useful any more.
        """
        started, aside = self._now(), self._aside
        layers = self._prefill(index, useful)
        seconds = self._now() - started - (self._aside - aside)
        block = self._prefix.blocks[index]
        if not any(self._errors.get(earlier) for earlier in range(index)):
            exact = encode(
                [k[0] for k, _ in layers], [v[0] for _, v in layers], Precision.EXACT
            )
            self._of.store.put(block.addresses[Precision.EXACT], exact)
        self._drop_parts(index)
        return seconds

    # -- from elsewhere ---------------------------------------------------------------

    def _restore(self, missing: Sequence[int], source: SegmentSource) -> None:
        """Compute from the front and fetch from the back until they meet."""
        of = self._of
        offered = [self._offered(index) for index in missing]
        errors = {p: of.errors[p] for p in of.precisions}
        state = Restoration(
            Offer(offered, errors),
            of.speed,
            of.link,
            of.max_error,
            stops_within=stops_within(of.model, self._prefix.blocks[-1].end),
            at=source.now(),
            come=self._resumed(missing[-1], source.now()),
        )
        self._state = state
        # What an earlier load was sent would tell how long its prompt has taken.
        source.request(self._prefix, ())
        source.arrived(0.0)
        try:
            self._until_met(state, source)
        except BaseException:
            # For whoever tries again, be it another process.
            for wanted, half in self._half.items():
                if wanted.block in state.missing:
                    half.keep()
            raise
        if state.finished and self._asked:
            self._asked = ()
            source.request(self._prefix, ())
        if self._report.bytes_fetched:
            of.silent = False
        elif self._requested and not of.silent:
            of.silent = True
            _LOG.warning(
                "Nothing has come from the source while %d blocks were computed here. "
                "If it stays so, look at its address, its certificate and the token; "
                "this is said once.",
                self._report.computed,
            )

    def _resumed(self, index: int, at: float) -> dict[Wanted, int]:
        """Take up what is kept of a block; return how many bytes that is."""
        block = self._prefix.blocks[index]
        shape = self._prefix.identity.shape(len(block.tokens))
        found: dict[Wanted, UnfinishedBlock] = {}
        for precision in self._of.precisions:
            half = UnfinishedBlock.kept(
                self._of.store,
                block.addresses[precision],
                shape,
                self._of.max_error,
                at,
            )
            if half is not None:
                found[Wanted(index, precision)] = half
        if not found:
            return {}

        def left(wanted: Wanted) -> int:
            size = shape.layers * layer_nbytes(shape, wanted.precision)
            return size - found[wanted].nbytes

        wanted = min(found, key=left)
        half = self._half[wanted] = found[wanted]
        for layer, data in enumerate(half.layers):
            self._decode(index, layer, data, wanted.precision)
        return {wanted: half.nbytes}

    def _until_met(self, state: Restoration, source: SegmentSource) -> None:
        """Compute and fetch until all is there, or its last layers are on their way."""
        of = self._of
        while not state.finished and not self._only_layers_left(state):
            state.passed(source.now())
            self._ask(state, source)
            if self._take(state, source, 0.0):
                continue
            index = state.computing
            if index is not None:
                self._compute_while_useful(index, state, source)
            elif not self._asked:
                of.clock.sleep_until(of.clock.now() + state.patience)
            else:
                self._take(state, source, state.patience)

    def _compute_while_useful(
        self, index: int, state: Restoration, source: SegmentSource
    ) -> None:
        """Compute a block, unless the rest is found to come sooner."""
        begun = source.now()

        def useful() -> bool:
            started = self._now()
            self._take(state, source, 0.0)
            self._aside += self._now() - started
            state.passed(source.now())
            return state.useful(index, begun)

        try:
            seconds = self._compute(index, useful)
        except StoppedError:
            return
        state.computed(index, seconds, source.now())

    def _only_layers_left(self, state: Restoration) -> bool:
        """Return whether one block is missing, has begun to come, and may be left."""
        missing = state.missing
        heard = len(missing) == 1 and any(
            half.heard for w, half in self._half.items() if w.block == missing[0]
        )
        return heard and bool(self._asked) and not self._all_at_once

    def _ask(self, state: Restoration, source: SegmentSource) -> None:
        """Send a request if another one is wanted."""
        wanted = state.fetching
        if wanted != self._asked:
            self._asked = wanted
            self._requested = self._requested or bool(wanted)
            # What has come of any other block is sent again.
            self._half = {w: self._half[w] for w in wanted[:1] if w in self._half}
            self._begun = {w.block: len(h.layers) for w, h in self._half.items()}
            source.request(self._prefix, wanted, sum(self._begun.values()))

    def _take(self, state: Restoration, source: SegmentSource, timeout: float) -> bool:
        """Take what has come; return whether anything has, or a loss was noticed."""
        begun = source.now()
        try:
            arrivals = source.arrived(timeout)
        except SourceError as error:
            _LOG.warning("Blocks could not be fetched (%s).", error)
            self._lost(state, source)
            return True
        for arrival in arrivals:
            self._took(state, arrival)
        # Who has not waited, by a clock that may be a little off: nothing is under way.
        if not arrivals and timeout and source.now() < begun + timeout / 2:
            self._lost(state, source)
            return True
        return bool(arrivals)

    def _lost(self, state: Restoration, source: SegmentSource) -> None:
        self._asked = ()
        state.lost(source.now())

    def _took(self, state: Restoration, arrival: Arrival) -> None:
        """Decode a layer, and keep the block if it is whole."""
        wanted, header = arrival.wanted, arrival.header
        self._report.bytes_fetched += arrival.data.numel()
        if not header.error <= self._of.max_error:
            state.refused(wanted.precision, header.error)
            return
        if wanted.block not in state.missing:
            return
        half = self._half.get(wanted)
        if half is not None and arrival.layer and not half.goes_on(header):
            self._start_over(state, wanted)
            return
        if arrival.layer != (0 if half is None else len(half.layers)):
            if arrival.layer:
                return
            half = None
            state.starts_over(wanted)  # Sent again.
        block = self._prefix.blocks[wanted.block]
        address = block.addresses[wanted.precision]
        if half is None:
            half = UnfinishedBlock(self._of.store, address, header, arrival.at)
            self._half[wanted] = half
        nbytes = arrival.data.numel()
        if self._of.open is self:
            # How long it takes now may depend on what else the device computes.
            self._decode(wanted.block, arrival.layer, arrival.data, wanted.precision)
        else:
            started = self._now()
            self._decode(wanted.block, arrival.layer, arrival.data, wanted.precision)
            self._of.speed.decoded(wanted.precision, nbytes, self._now() - started)
        half.add(header, arrival.data)
        self._begun[wanted.block] = len(half.layers)
        whole = len(half.layers) == header.shape.layers
        state.arrived(wanted, nbytes, arrival.at, whole)
        if whole:
            encoded = EncodedBlock(
                header.shape, wanted.precision, header.error, tuple(half.layers)
            )
            del self._half[wanted]
            self._of.store.put(address, encoded)
            self._drop_parts(wanted.block)
            self._report.fetched[wanted.precision] += 1
            self._has_error([wanted.block], header.error)
        elif self._of.open is not self:
            # What comes later may be looked at the later the longer a private text is.
            half.keep_if_due(arrival.at)

    def _start_over(self, state: Restoration, wanted: Wanted) -> None:
        """Ask for all of a block of which another one's layers had been kept."""
        block = self._prefix.blocks[wanted.block]
        self._of.store.discard_partial(block.addresses[wanted.precision])
        del self._half[wanted]
        state.starts_over(wanted)
        self._asked = ()

    def _drop_parts(self, index: int) -> None:
        """Remove what is kept of a block that is there."""
        for address in self._prefix.blocks[index].addresses.values():
            self._of.store.discard_partial(address)

    # -- while the private text is read -----------------------------------------------

    def _leave_open(self, state: Restoration) -> None:
        """Leave the rest of the last block to whoever reads it."""
        source = self._of.source
        assert source is not None
        (last,) = state.missing
        block = self._prefix.blocks[last]
        computing = self._of.speed.seconds(block.begin, len(block.tokens))
        self._patience = max(_PATIENCE * computing, _LEAST_PATIENCE)
        self._deadline = source.now() + self._patience
        self._of.open = self
        # What is before the block may be read at any time.
        self._run_of(last).kv.wait_with(self._wait)

    def _wait(self, layer: int) -> None:
        """Wait for a layer of the last block, or compute the block for this prompt."""
        assert self._state is not None
        while self._of.open is self:
            if self._begun[self._state.missing[0]] > layer:
                return
            self._take_last()
        if not self._state.finished:
            (block,) = self._state.missing
            self._run_of(block).kv.wait_with(None)
            self._prefill(block)

    def _take_last(self) -> None:
        """Take what comes of the last block; if a layer is late, give the block up."""
        state, source = self._state, self._of.source
        assert state is not None
        assert source is not None
        try:
            arrivals = source.arrived(max(self._deadline - source.now(), 0.0))
        except SourceError as error:
            _LOG.warning("Blocks could not be fetched (%s).", error)
            arrivals = []
        late = not arrivals
        for arrival in arrivals:
            late = late or arrival.at > self._deadline
            if not late:
                self._took(state, arrival)
                self._deadline = max(self._deadline, arrival.at + self._patience)
        if late or state.finished:
            self._of.open = None
        if state.finished:
            self._whole()

    def _offered(self, index: int) -> OfferedBlock:
        block = self._prefix.blocks[index]
        shape = self._prefix.identity.shape(len(block.tokens))
        return OfferedBlock(
            index,
            block.begin,
            len(block.tokens),
            {p: shape.layers * layer_nbytes(shape, p) for p in self._of.precisions},
        )


def _name(blocks: Sequence[SharedBlock]) -> bytes:
    """Return what a run in memory is known by."""
    return (
        blocks[0].begin.to_bytes(8, "little")
        + blocks[-1].addresses[Precision.EXACT].digest
    )
