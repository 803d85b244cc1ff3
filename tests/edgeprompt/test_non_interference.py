"""What leaves a device is the same whatever is private, and however long it is."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from flower_ext.edgeprompt import (
    EdgePrompt,
    KVStore,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
)
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.errors import PrivateSegmentError
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.loader import PrefixLoader
from flower_ext.edgeprompt.recording import (
    Asked,
    Came,
    Message,
    Record,
    RecordingSource,
)
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Wanted
from flower_ext.models import default_pair
from flower_ext.network import Link
from flower_ext.network.clocks import VirtualClock
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


class MovedBorder(EdgePrompt):
    """A control that leaks: half of the private text counts as public."""

    def shared_prefix(self, hierarchy: PromptHierarchy) -> SharedPrefix:
        tokens = hierarchy.private_tokens
        half = Segment(tokens[: max(len(tokens) // 2, 1)], Level.GROUP)
        return SharedPrefix((*hierarchy.shared, half), self.identity, KEY)


class LengthInThePlan(EdgePrompt):
    """A control that leaks: the precision follows from the private text's length."""

    def shared_prefix(self, hierarchy: PromptHierarchy) -> SharedPrefix:
        long = len(hierarchy.private_tokens) > 30
        self._loader._precisions = (Precision.INT8 if long else Precision.EXACT,)
        return super().shared_prefix(hierarchy)


@cache
def _checked(kind: Any, model: Any) -> EdgePrompt:
    """Return an engine; that its model can be spliced is found out once."""
    engine: EdgePrompt = kind(model, tokenizer(), tenant_key=KEY)
    return engine


def transcript(
    kind: Any,
    model: Any,
    service: SegmentService,
    private: list[int],
    prompts: int = 1,
) -> list[Record]:
    """Return all that passed the link while prompts were answered on a new device.

    When the device takes what has come out of its own queue, nobody else can tell.
    """
    clock = VirtualClock(timer=lambda: float(model.spent))
    source = RecordingSource(LinkedSource(service, LINK, clock))
    engine = copy.copy(_checked(kind, model))
    # A new device: nothing stored, nothing loaded, nothing learned.
    engine._clock = clock
    engine._loader = PrefixLoader(
        model, clock, KVStore(), source, tuple(Precision)[:4], 0.02, 2**30
    )
    begin = clock.now()
    for seed in range(prompts):
        of = PromptHierarchy([*shared(seed), Segment(private, Level.PRIVATE)])
        engine.generate(of, 1, do_sample=False)
    # The clock goes on from one device to the next.
    return [
        dataclasses.replace(record, at=round(record.at - begin, 6))
        for record in source.transcript
        if not isinstance(record, Came)
    ]


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
