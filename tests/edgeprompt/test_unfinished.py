"""A block that did not come whole goes on where it stopped, or begins anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flower_ext.edgeprompt import EdgePrompt, KVStore, Level, PromptHierarchy, Segment
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.precision import Precision, layer_nbytes
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Arrival, Wanted
from flower_ext.edgeprompt.unfinished import UnfinishedBlock
from flower_ext.models import ModelPair, default_pair
from flower_ext.network import Link
from flower_ext.network.clocks import VirtualClock
from tests.edgeprompt.stored_blocks import address, block, file_of, files, header_of

KEY = bytes(range(32))
SHARED = [5 + (7 * i) % 1000 for i in range(500)]
PROMPT = PromptHierarchy(
    [Segment(SHARED, Level.PUBLIC), Segment([7, 8, 9], Level.PRIVATE)]
)
LINK = Link(up=1e9, down=1e6, rtt=0.02)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


@pytest.fixture(scope="module")
def service(pair: ModelPair) -> SegmentService:
    return serving(copy.deepcopy(pair.target))


def serving(model: Any, **options: Any) -> SegmentService:
    """Return a service that has the prompt's blocks."""
    own = SegmentService(model, KVStore(), **options)
    for index in range(2):
        own.block(prefix_of(own), Wanted(index, Precision.EXACT))
    return own


def prefix_of(service: SegmentService) -> SharedPrefix:
    return SharedPrefix(PROMPT.shared, service.identity)


class Interrupted:
    """A source whose device is interrupted when so many layers have come."""

    def __init__(self, source: LinkedSource, after: float) -> None:
        self._source = source
        self._left = after
        self.have: list[int] = []

    def now(self) -> float:
        return self._source.now()

    def request(
        self, prefix: SharedPrefix, wanted: Sequence[Wanted], have_layers: int = 0
    ) -> None:
        if wanted:
            self.have.append(have_layers)
        self._source.request(prefix, wanted, have_layers)

    def arrived(self, timeout: float) -> list[Arrival]:
        if self._left <= 0:
            raise KeyboardInterrupt
        found = self._source.arrived(timeout)
        self._left -= len(found)
        return found


def device(
    pair: ModelPair, service: SegmentService, store: KVStore, after: float = math.inf
) -> tuple[EdgePrompt, Interrupted]:
    """Return an engine that would rather wait for its link than compute."""
    clock = VirtualClock(timer=lambda: 0.0)
    source = Interrupted(LinkedSource(service, LINK, clock), after)
    engine = EdgePrompt(
        pair.target,
        pair.tokenizer,
        store=store,
        source=source,
        precisions=[Precision.EXACT],
        clock=clock,
    )
    for tokens in (64, 128, 256):
        engine._loader.speed.computed(0, tokens, 10.0 * tokens)
    return engine, source


def parts(directory: Path) -> list[str]:
    return [name for name in files(directory) if ".partial" in name]


def interrupt(
    pair: ModelPair, service: SegmentService, directory: Path, after: int
) -> None:
    engine, _ = device(pair, service, KVStore(directory), after)
    with pytest.raises(KeyboardInterrupt):
        engine.load(PROMPT)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_only_the_rest_is_fetched(
    pair: ModelPair, service: SegmentService, tmp_path: Path, after: int
) -> None:
    layers = pair.target.config.num_hidden_layers
    interrupt(pair, service, tmp_path, after)
    assert len(parts(tmp_path)) == 1
    engine, source = device(pair, service, KVStore(tmp_path))
    found = engine.generate(PROMPT, 8, do_sample=False)

    shapes = [service.identity.shape(tokens) for tokens in (256, 244)]
    sizes = [layers * layer_nbytes(shape, Precision.EXACT) for shape in shapes]
    come, rest = divmod(after, layers)
    gone = sizes[1] if come else after * sizes[1] // layers
    gone += rest * sizes[0] // layers if come else 0
    assert found.report.bytes_fetched == sum(sizes) - gone
    assert source.have[0] == rest
    assert found.report.computed == 0
    ids = torch.tensor([PROMPT.tokens])
    whole: Any = pair.target.generate(ids, max_new_tokens=8, do_sample=False)  # type: ignore[operator]
    assert found.tokens == tuple(whole[0, ids.shape[1] :].tolist())
    assert not parts(tmp_path)
    for index, of in enumerate(prefix_of(service).blocks):
        kept = KVStore(tmp_path).get(of.addresses[Precision.EXACT])
        served = service.block(prefix_of(service), Wanted(index, Precision.EXACT))
        assert kept is not None
        assert all(map(torch.equal, kept.layers, served.layers))


def test_layers_of_two_edges_are_not_mixed(
    pair: ModelPair, service: SegmentService, tmp_path: Path
) -> None:
    interrupt(pair, service, tmp_path, 2)
    model = copy.deepcopy(pair.target)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    # As if it were the same model, on a machine that rounds otherwise.
    other = serving(model, identity=service.identity)
    engine, source = device(pair, other, KVStore(tmp_path))
    assert engine.load(PROMPT).computed == 0
    assert source.have[:2] == [2, 0]
    for index, of in enumerate(prefix_of(other).blocks):
        kept = KVStore(tmp_path).get(of.addresses[Precision.EXACT])
        served = other.block(prefix_of(other), Wanted(index, Precision.EXACT))
        assert kept is not None
        assert all(map(torch.equal, kept.layers, served.layers))


def test_a_part_that_was_changed_is_fetched_again(
    pair: ModelPair, service: SegmentService, tmp_path: Path
) -> None:
    interrupt(pair, service, tmp_path, 2)
    (name,) = parts(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    store = KVStore(tmp_path)
    engine, source = device(pair, service, store)
    assert engine.load(PROMPT).fetched.total() == 2
    assert source.have[0] == 0
    assert store.counts.refused == 1


def test_a_part_of_a_block_that_was_computed_is_removed(
    pair: ModelPair, service: SegmentService, tmp_path: Path
) -> None:
    interrupt(pair, service, tmp_path, 2)
    assert parts(tmp_path)
    engine = EdgePrompt(pair.target, pair.tokenizer, store=KVStore(tmp_path))
    assert engine.load(PROMPT).computed == 2
    assert not parts(tmp_path)


def test_what_has_come_is_kept_as_it_grows(tmp_path: Path) -> None:
    whole = block()
    path = file_of(tmp_path, 1, partial=True)
    half = UnfinishedBlock(KVStore(tmp_path), address(1), header_of(whole), 10.0)
    half.add(header_of(whole), whole.layers[0])
    half.keep_if_due(10.9)
    assert not path.exists()
    half.keep_if_due(11.0)
    written = path.stat().st_mtime_ns
    half.keep_if_due(99.0)  # No more has come.
    assert path.stat().st_mtime_ns == written
    half.add(header_of(whole), whole.layers[1])
    half.keep_if_due(11.9)
    found = UnfinishedBlock.kept(
        KVStore(tmp_path), address(1), whole.shape, whole.error, 0.0
    )
    assert found is not None
    assert len(found.layers) == 1
    half.keep_if_due(12.0)
    found = UnfinishedBlock.kept(
        KVStore(tmp_path), address(1), whole.shape, whole.error, 0.0
    )
    assert found is not None
    assert len(found.layers) == 2
    assert not found.heard
    for shape, error in (
        (block(tokens=9).shape, whole.error),
        (whole.shape, -1.0),
    ):
        store = KVStore(tmp_path)
        assert UnfinishedBlock.kept(store, address(1), shape, error, 0.0) is None


def test_a_block_puts_no_other_of_its_prefix_out(
    pair: ModelPair, service: SegmentService, tmp_path: Path
) -> None:
    engine, _ = device(pair, service, KVStore(tmp_path / "all"))
    engine.load(PROMPT)
    room = max(p.stat().st_size for p in (tmp_path / "all").glob("*.safetensors"))
    kept = []
    for _ in range(3):
        small = KVStore(tmp_path / "one", disk_bytes=room, memory_bytes=0)
        engine, _ = device(pair, service, small)
        engine.load(PROMPT)
        kept.append((files(tmp_path / "one"), small.counts.evictions))
    assert kept == [(kept[0][0], 0)] * 3
