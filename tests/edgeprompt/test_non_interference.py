"""What leaves a device is the same whatever is private, and however long it is."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edgeprompt import (
    EdgePrompt,
    KVStore,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
)
from flower_ext.edgeprompt.blocks import SharedPrefix, identity_of
from flower_ext.edgeprompt.errors import PrivateSegmentError
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.loader import PrefixLoader
from flower_ext.edgeprompt.precision import layer_nbytes
from flower_ext.edgeprompt.recording import (
    Asked,
    Came,
    Message,
    Record,
    RecordingSource,
)
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Wanted
from flower_ext.errors import InvalidInputError
from flower_ext.models import default_pair
from flower_ext.network import Link
from flower_ext.network.clocks import VirtualClock
from flower_ext.network.rates import TraceRate
from tests.edgeprompt.leaks import LengthInThePlan, MovedBorder
from tests.edgeprompt.tiny import VOCABULARY, tiny

PAIRS = 1000
KEY = bytes(range(32))
# Slow enough that some blocks are computed while others are fetched.
LINK = Link(up=1e5, down=2e6, rtt=0.03)
SECONDS_PER_TOKEN = 5e-4


def drawn(generator: torch.Generator, most: int) -> list[int]:
    length = int(torch.randint(1, most, (1,), generator=generator))
    found: list[int] = torch.randint(
        1, VOCABULARY, (length,), generator=generator
    ).tolist()
    return found


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return default_pair().tokenizer


def shared(seed: int) -> list[Segment]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (420,), generator=generator).tolist()
    return [Segment(tokens[:300], Level.PUBLIC), Segment(tokens[300:], Level.GROUP)]


@pytest.fixture(scope="module")
def service() -> SegmentService:
    return SegmentService(copy.deepcopy(tiny("llama")), KVStore())


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a model that takes its time by the token, private ones included."""
    model: Any = copy.deepcopy(tiny("llama"))
    model.spent = 0.0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        model.spent += SECONDS_PER_TOKEN * ids.shape[1]

    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    return model


@cache
def _checked(kind: Any, model: Any) -> EdgePrompt:
    """Return an engine; that its model can be spliced is found out once."""
    engine: EdgePrompt = kind(model, tokenizer(), tenant_key=KEY)
    return engine


def new_device(
    kind: Any, model: Any, service: SegmentService, link: Link = LINK
) -> tuple[EdgePrompt, RecordingSource]:
    """Return an engine with nothing stored, nothing loaded and nothing learned."""
    clock = VirtualClock(timer=lambda: float(model.spent))
    source = RecordingSource(LinkedSource(service, link, clock))
    engine = copy.copy(_checked(kind, model))
    engine._clock = clock
    engine._loader = PrefixLoader(
        model, clock, KVStore(), source, tuple(Precision)[:4], 0.02, 2**30
    )
    return engine, source


def seen(source: RecordingSource, begin: float) -> list[Record]:
    """Return all that passed the link.

    When the device takes what has come out of its own queue, nobody else can tell.
    """
    # The clock goes on from one device to the next.
    return [
        dataclasses.replace(record, at=round(record.at - begin, 6))
        for record in source.transcript
        if not isinstance(record, Came)
    ]


def transcript(
    kind: Any,
    model: Any,
    service: SegmentService,
    private: list[int],
    prompts: int = 1,
) -> list[Record]:
    """Return all that passed the link while prompts were answered on a new device."""
    engine, source = new_device(kind, model, service)
    begin = engine._clock.now()
    for seed in range(prompts):
        of = PromptHierarchy([*shared(seed), Segment(private, Level.PRIVATE)])
        engine.generate(of, 1, do_sample=False)
    return seen(source, begin)


@pytest.fixture(scope="module")
def transcripts(model: Any, service: SegmentService) -> list[list[Record]]:
    generator = torch.Generator().manual_seed(5)
    transcript(EdgePrompt, model, service, [1])  # The service has its blocks then.
    return [
        transcript(EdgePrompt, model, service, drawn(generator, 80))
        for _ in range(PAIRS + 1)
    ]


def test_transcripts_are_the_same_to_the_byte(
    transcripts: list[list[Record]],
) -> None:
    for one, other in itertools.pairwise(transcripts):
        assert one == other
    asked = [record for record in transcripts[0] if isinstance(record, Asked)]
    sent = [r for r in transcripts[0] if isinstance(r, Message) and r.up]
    assert asked
    assert sent
    assert all(record.data for record in sent)


@pytest.mark.parametrize("leak", [MovedBorder, LengthInThePlan])
def test_a_leak_is_noticed(
    leak: type[EdgePrompt],
    model: Any,
    service: SegmentService,
) -> None:
    generator = torch.Generator().manual_seed(5)
    leaked = [transcript(leak, model, service, drawn(generator, 80)) for _ in range(20)]
    assert any(one != other for one, other in itertools.pairwise(leaked))


def test_prompts_in_a_row(model: Any, service: SegmentService) -> None:
    """Only when the second is asked for may tell how long the first took."""
    generator = torch.Generator().manual_seed(6)
    rows = []
    for _ in range(40):
        found = transcript(EdgePrompt, model, service, drawn(generator, 80), prompts=3)
        rows.append([dataclasses.replace(record, at=0.0) for record in found])
    assert all(row == rows[1] for row in rows[1:])


@pytest.mark.parametrize("slow", [False, True])
def test_prompts_that_fail_leave_the_same(
    model: Any, service: SegmentService, slow: bool
) -> None:
    """Nobody else can tell that a private text was too long, or made the model fail."""
    failing = False

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        if failing and 96 in ids[0].tolist():
            raise RuntimeError("out of memory")

    handle = model.base_model.register_forward_pre_hook(fail, with_kwargs=True)
    # What is shared has no 96 in it.
    texts = [
        [Segment([t % 95 + 1 for t in s.tokens], s.level) for s in shared(i)]
        for i in (0, 0, 1, 0, 2)
    ]
    rows = []
    # The service has its blocks after the first.
    for private in ([7] * 5, [7] * 5, [7] * 590, [7] * 700, [96] * 5):
        engine, source = new_device(EdgePrompt, model, service)
        if slow:
            for tokens in (64, 128, 256):
                engine._loader.speed.computed(0, tokens, 0.1 * tokens)
        failed = 0
        for index, segments in enumerate(texts):
            failing = private[0] == 96
            own = [7] * 5 if index == 2 else private
            try:
                of = PromptHierarchy([*segments, Segment(own, Level.PRIVATE)])
                engine.generate(of, 1, do_sample=False)
            except (InvalidInputError, RuntimeError):
                failed += 1
        assert failed == (4 if len(private) == 700 or failing else 0)
        rows.append([dataclasses.replace(r, at=0.0) for r in seen(source, 0.0)])
    handle.remove()
    assert all(row == rows[1] for row in rows[2:])


def answers(
    model: Any, service: SegmentService, link: Link, length: int
) -> tuple[list[list[Record]], int]:
    """Return what passes a link that stalls, prompt by prompt, and fetched blocks."""
    engine, source = new_device(EdgePrompt, model, service, link)
    loader, clock = engine._loader, engine._clock
    loader.link.arrived(layer_bytes(model), 0.01)
    for count in (64, 128, 256):
        loader.speed.computed(0, count, 5e-3 * count)
    tokens = [t for seed in (20, 21, 22) for s in shared(seed) for t in s.tokens]

    def answer(borders: Sequence[int], at: float) -> int:
        clock.sleep_until(begin + at)
        segments = [
            Segment(tokens[one:other], Level.PUBLIC)
            for one, other in itertools.pairwise(borders)
        ]
        private = Segment([7] * length, Level.PRIVATE)
        of = PromptHierarchy([*segments, private])
        found = engine.generate(of, 1, do_sample=False)
        rows.append(seen(source, begin))
        source.transcript.clear()
        return int(found.report.fetched.total())

    rows: list[list[Record]] = []
    begin = clock.now()
    fetched = answer((0, 200), 0.0)
    answer((0, 200, 500, 900), 10.0)
    # What that has left in the store is looked at by one that takes exact blocks only.
    engine._loader = PrefixLoader(
        model, clock, loader.store, source, (Precision.EXACT,), 0.0, 2**30
    )
    answer((0, 200), 20.0)
    return rows, fetched


def layer_bytes(model: Any) -> int:
    """Return the bytes of a layer of 200 tokens."""
    return layer_nbytes(identity_of(model).shape(200), Precision.INT8)


def test_a_link_that_stalls_decides_alone(model: Any, service: SegmentService) -> None:
    """A layer of the last block is late, or not, whenever the private text wants it."""
    rate = layer_bytes(model) / 0.02
    fetched = set()
    # The first layer comes, then next to nothing for about as long as is waited.
    for stop in (0.5, 1.5, 1.9, 1.95, 1.98, 2.0, 2.02, 2.04, 2.06, 2.1, 3.0, 6.0):
        trace = TraceRate([0.0, 0.025, stop, 1e4], [rate, 1.0, rate, rate])
        link = Link(up=1e9, down=trace)
        answers(model, service, link, 1)  # The service has its blocks then.
        (short, count), (long, _) = (
            answers(model, service, link, length) for length in (1, 79)
        )
        assert short == long
        fetched.add(count)
    assert fetched == {0, 1}


def test_a_part_of_a_block_is_the_same_whatever_the_private_text(
    model: Any, service: SegmentService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a block that was given up decides what is asked for next."""
    monkeypatch.setattr(f"{__name__}.SECONDS_PER_TOKEN", 0.02)
    shape = identity_of(model).shape(256)
    rate = layer_nbytes(shape, Precision.EXACT) / 2.0
    # Two layers of the second block come while the first is computed, and no third.
    link = Link(up=1e9, down=TraceRate([0.0, 5.0, 300.0, 1e4], [rate, 1.0, rate, rate]))
    tokens = [t for seed in (30, 31) for s in shared(seed) for t in s.tokens][:512]
    rows = []
    for length in (1, 1, 79):  # The service has its blocks after the first.
        engine, source = new_device(EdgePrompt, model, service, link)
        engine._loader.precisions = (Precision.EXACT,)
        engine._loader.link.arrived(1000, 1000 / rate)
        for count in (64, 128, 256):
            engine._loader.speed.computed(0, count, 0.02 * count)
        begin = engine._clock.now()
        private = Segment([7] * length, Level.PRIVATE)
        of = PromptHierarchy([Segment(tokens, Level.PUBLIC), private])
        reports = [engine.generate(of, 1, do_sample=False).report]
        engine._clock.sleep_until(begin + 400.0)
        asked = len(source.transcript)
        reports.append(engine.generate(of, 1, do_sample=False).report)
        rows.append(seen(source, begin))
    assert [(r.computed, r.fetched.total()) for r in reports] == [(2, 0), (0, 1)]
    again = [r for r in source.transcript[asked:] if isinstance(r, Message) and r.up]
    assert pb.SegmentRequest.FromString(again[0].data).have_layers == 2
    assert rows[2] == rows[1]


def test_nothing_is_asked_for_once_the_private_text_is_read(
    model: Any, service: SegmentService
) -> None:
    clock = VirtualClock(timer=lambda: float(model.spent))
    source = RecordingSource(LinkedSource(service, LINK, clock))
    engine = EdgePrompt(model, tokenizer(), source=source, tenant_key=KEY, clock=clock)
    seen = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        if 96 in ids[0].tolist():
            seen.append(sum(isinstance(r, Asked) for r in source.transcript))

    handle = model.base_model.register_forward_pre_hook(look, with_kwargs=True)
    # The token is nowhere in what is shared.
    segments = [Segment([t % 95 + 1 for t in s.tokens], s.level) for s in shared(9)]
    engine.generate(PromptHierarchy([*segments, Segment([96], Level.PRIVATE)]), 3)
    handle.remove()
    assert seen
    assert sum(isinstance(r, Asked) for r in source.transcript) == seen[0]


def test_a_source_takes_nothing_private(model: Any, service: SegmentService) -> None:
    clock = VirtualClock(timer=lambda: float(model.spent))
    source: Any = LinkedSource(service, LINK, clock)
    private = PromptHierarchy([Segment([5, 6], Level.PRIVATE)])
    with pytest.raises(PrivateSegmentError):
        SharedPrefix(private.segments, service.identity)
    for thing in (private, [5, 6], private.segments[0]):
        with pytest.raises((PrivateSegmentError, TypeError)):
            source.request(thing, [Wanted(0, Precision.EXACT)])
