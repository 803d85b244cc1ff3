"""Where blocks come from changes how long it takes, and nothing else."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flower_ext.edgeprompt import (
    Completion,
    EdgePrompt,
    KVStore,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
)
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.errors import SourceError
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Arrival, SegmentSource, Wanted
from flower_ext.models import ModelPair, default_pair
from flower_ext.network import Link
from flower_ext.network.clocks import VirtualClock
from flower_ext.network.rates import TraceRate

SECONDS_PER_TOKEN = 0.002
FAST = Link(up=1e6, down=1e8, rtt=0.01)
SLOW = Link(up=1e4, down=1e4, rtt=0.1)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


@pytest.fixture(scope="module")
def service(pair: ModelPair) -> SegmentService:
    own = SegmentService(copy.deepcopy(pair.draft), KVStore())
    for text in (SHARED, SHARED[:200]):
        prefix = SharedPrefix([Segment(text, Level.PUBLIC)], own.identity)
        for index, precision in itertools.product(range(len(prefix.blocks)), Precision):
            own.block(prefix, Wanted(index, precision))
    return own


def written(seed: int, tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(5, 1000, (tokens,), generator=generator).tolist()
    return found


SHARED = written(1, 900)


def prompt(private: Sequence[int] = (7, 8, 9)) -> PromptHierarchy:
    return PromptHierarchy(
        [Segment(SHARED, Level.PUBLIC), Segment(private, Level.PRIVATE)]
    )


def device(
    pair: ModelPair,
    service: SegmentService,
    link: Link,
    wrap: Callable[[Any], SegmentSource] = lambda source: source,
    **options: Any,
) -> tuple[EdgePrompt, Any]:
    """Return an engine behind a link, whose computing takes time by the token."""
    clock = counted_clock(pair.draft)
    source = LinkedSource(service, link, clock)
    engine = EdgePrompt(
        pair.draft, pair.tokenizer, source=wrap(source), clock=clock, **options
    )
    return engine, source


def counted_clock(model: Any) -> VirtualClock:
    """Return a clock on which a token takes this device a fixed time to compute."""
    spent = [0.0]

    def count(module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        spent[0] += SECONDS_PER_TOKEN * ids.shape[1]

    for hook in list(model.base_model._forward_pre_hooks):
        del model.base_model._forward_pre_hooks[hook]
    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    return VirtualClock(timer=lambda: spent[0])


@pytest.fixture(autouse=True)
def no_hooks_stay(pair: ModelPair) -> Any:
    yield
    pair.draft.base_model._forward_pre_hooks.clear()


def whole(pair: ModelPair, of: PromptHierarchy) -> tuple[int, ...]:
    ids = torch.tensor([of.tokens])
    text: Any = pair.draft.generate(ids, max_new_tokens=12)  # type: ignore[operator]
    return tuple(text[0, len(of) :].tolist())


def test_a_fast_link_brings_all_and_a_slow_one_nothing(
    pair: ModelPair, service: SegmentService
) -> None:
    for link, fetched in ((FAST, 3), (SLOW, 0)):
        engine, _ = device(pair, service, link, precisions=[Precision.EXACT])
        completion: Completion = engine.generate(prompt(), 12, do_sample=False)
        report = completion.report
        assert completion.tokens == whole(pair, prompt())
        assert report.computed + report.fetched.total() == report.blocks == 4
        assert (
            report.fetched.total() >= fetched if fetched else not report.fetched.total()
        )
        computing = SECONDS_PER_TOKEN * 900
        assert completion.time_to_first_token < 1.1 * computing


def test_the_private_text_begins_while_the_last_layers_come(
    pair: ModelPair, service: SegmentService
) -> None:
    short = PromptHierarchy(
        [Segment(SHARED[:200], Level.PUBLIC), Segment([7] * 100, Level.PRIVATE)]
    )
    layer = 200 * 2 * 2 * 32 * 4
    # A layer comes in about 80 ms; computing the block takes 400 ms, and it must not
    # be begun when the link is known to be faster.
    link = Link(up=1e9, down=layer / 0.08, rtt=0.001)
    engine, _ = device(pair, service, link, precisions=[Precision.EXACT])
    engine._loader.link.arrived(layer, 0.08)
    for tokens in (100, 200):
        engine._loader.speed.computed(0, tokens, SECONDS_PER_TOKEN * tokens)
    first = engine.generate(short, 2, do_sample=False)
    layers = pair.draft.config.num_hidden_layers
    assert first.report.fetched.total() == 1
    assert first.report.seconds < 0.15
    assert first.time_to_first_token < layers * 0.08 + 0.25
    assert first.tokens == whole(pair, short)[:2]


class _Cut:
    """A source whose link drops after some arrivals, for a while or for good."""

    def __init__(self, source: Any, after: int, failures: float) -> None:
        self._source = source
        self._left = after
        self._failures = failures
        self._asked = False

    def now(self) -> float:
        return float(self._source.now())

    def request(
        self, prefix: SharedPrefix, wanted: Sequence[Wanted], have_layers: int = 0
    ) -> None:
        self._source.request(prefix, wanted, have_layers)
        self._asked = bool(wanted)

    def arrived(self, timeout: float) -> list[Arrival]:
        if self._asked and self._left <= 0 and self._failures > 0:
            self._failures -= 1
            self._asked = False
            raise SourceError("the link dropped")
        found: list[Arrival] = self._source.arrived(timeout)
        self._left -= len(found)
        return found


@pytest.mark.parametrize("failures", [1, 3, math.inf])
@pytest.mark.parametrize("after", [0, 1, 4, 9, 14])
def test_a_link_that_drops_costs_time_only(
    pair: ModelPair, service: SegmentService, after: int, failures: float
) -> None:
    link = Link(up=1e6, down=1e6, rtt=0.02)
    engine, _ = device(pair, service, link, lambda s: _Cut(s, after, failures))
    completion = engine.generate(prompt(), 12, do_sample=False)
    assert completion.tokens == whole(pair, prompt())


class _Dropped:
    """A source that has nothing under way any more, and does not say so."""

    def __init__(self, source: Any, after: int, drops: float) -> None:
        self._source = source
        self._left = after
        self._drops = drops
        self.asked: list[float] = []
        self.dropped: list[float] = []

    def now(self) -> float:
        return float(self._source.now())

    def request(
        self, prefix: SharedPrefix, wanted: Sequence[Wanted], have_layers: int = 0
    ) -> None:
        self._prefix = prefix
        self._source.request(prefix, wanted, have_layers)
        if wanted:
            self.asked.append(self.now())

    def arrived(self, timeout: float) -> list[Arrival]:
        if self._left <= 0 and timeout and len(self.dropped) < self._drops:
            self._source.request(self._prefix, ())
            self.dropped.append(self.now())
        found: list[Arrival] = self._source.arrived(timeout)
        self._left -= len(found)
        return found


@pytest.mark.parametrize("drops", [1, 3, math.inf])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_source_that_returns_nothing_at_once_has_lost_what_was_asked_for(
    pair: ModelPair, service: SegmentService, after: int, drops: float
) -> None:
    made: list[_Dropped] = []

    def wrap(source: Any) -> SegmentSource:
        made.append(_Dropped(source, after, drops))
        return made[0]

    engine, _ = device(pair, service, FAST, wrap, precisions=[Precision.EXACT])
    slow(engine)
    begin = engine._clock.now()
    completion = engine.generate(prompt(), 12, do_sample=False)
    assert completion.tokens == whole(pair, prompt())
    (source,) = made
    # Asked again 0.1 s later, then twice as long: no timeout, of seconds here, passes.
    again = [b - a for a, b in zip(source.dropped, source.asked[1:], strict=False)]
    pauses = [0.1, 0.2, 0.4][: int(min(drops, 3))]
    assert again[: len(pauses)] == pytest.approx(pauses)
    if drops < math.inf:
        assert completion.report.computed == 0
        assert completion.time_to_first_token < begin + 2.0


def test_a_last_layer_that_is_not_under_way_is_not_waited_for(
    pair: ModelPair, service: SegmentService
) -> None:
    made: list[_Dropped] = []

    def wrap(source: Any) -> SegmentSource:
        made.append(_Dropped(source, 7, 1))  # Of four blocks of two layers.
        return made[0]

    link = Link(up=1e6, down=1e6, rtt=0.01)
    engine, _ = device(pair, service, link, wrap, precisions=[Precision.EXACT])
    slow(engine)
    completion = engine.generate(prompt(), 12, do_sample=False)
    assert completion.tokens == whole(pair, prompt())
    assert completion.report.fetched.total() == 3
    assert completion.report.computed == 1
    assert completion.time_to_first_token < 5.0  # It would have waited for a minute.
    (source,) = made
    assert len(source.dropped) == len(source.asked) == 1


def test_an_error_above_the_bound_is_not_used(
    pair: ModelPair, service: SegmentService
) -> None:
    engine, _ = device(
        pair,
        service,
        FAST,
        precisions=[Precision.INT4, Precision.INT8],
        max_error=1e-3,
    )
    engine._loader.errors |= {Precision.INT4: 0.0, Precision.INT8: 0.0}  # It hopes.
    completion = engine.generate(prompt(), 12, do_sample=False)
    assert completion.report.computed == 4
    assert completion.report.largest_error == 0.0
    assert completion.tokens == whole(pair, prompt())


def test_fetched_blocks_are_kept(
    pair: ModelPair, service: SegmentService, tmp_path: Path
) -> None:
    for run in range(2):
        store = KVStore(tmp_path, key=bytes(32))
        engine, source = device(pair, service, FAST, store=store)
        report = engine.generate(prompt(), 2).report
        assert report.in_store == (4 if run else 0)
        assert (source.requests == 0) == bool(run)


def test_int8_agrees_on_a_trained_model(service: SegmentService) -> None:
    """Top-1 agreement over private texts behind INT8 prefixes, and what INT4 gives."""
    pair = default_pair()
    torch.manual_seed(3)
    start = torch.randint(5, 1000, (12, 1))
    texts: Any = pair.target.generate(  # type: ignore[operator]
        start, max_new_tokens=420, do_sample=True, eos_token_id=None
    )
    agreement: dict[Precision, list[bool]] = {}
    for precision in (Precision.INT8, Precision.INT4):
        for text in texts.tolist():
            of = PromptHierarchy(
                [Segment(text[:300], Level.PUBLIC), Segment(text[300:], Level.PRIVATE)]
            )
            store = KVStore()
            cloud = EdgePrompt(pair.target, pair.tokenizer, store=store)
            for block in cloud.publish(of, [precision]).blocks:
                store.discard(block.addresses[Precision.EXACT])
            engine = EdgePrompt(pair.target, pair.tokenizer, store=store, max_error=1.0)
            found = engine.logits(of)
            assert engine.load(of).computed == 0
            with torch.inference_mode():
                exact = pair.target(torch.tensor([text])).logits[0, 299:]
            same = found[1:].argmax(-1) == exact[1:].argmax(-1)
            agreement.setdefault(precision, []).extend(same.tolist())
    share = {p: sum(same) / len(same) for p, same in agreement.items()}
    assert share[Precision.INT8] >= 0.99
    assert 0.8 < share[Precision.INT4] < 1.0


GROUPED = PromptHierarchy(
    [
        Segment(SHARED[:600], Level.PUBLIC),
        Segment(SHARED[600:], Level.GROUP),
        Segment([7, 8, 9], Level.PRIVATE),
    ]
)


@pytest.mark.parametrize("after", [0, 3, 5, 7, 8, 9, 11])
def test_a_link_that_drops_within_the_last_block_of_two_levels(
    pair: ModelPair, after: int
) -> None:
    key = bytes(range(32))
    own = SegmentService(copy.deepcopy(pair.draft), KVStore())
    prefix = SharedPrefix(GROUPED.shared, own.identity, key)
    for index in range(len(prefix.blocks)):
        own.block(prefix, Wanted(index, Precision.EXACT))
    link = Link(up=1e6, down=1e7, rtt=0.02)
    engine, _ = device(
        pair,
        own,
        link,
        lambda s: _Cut(s, after, math.inf),
        precisions=[Precision.EXACT],
        tenant_key=key,
    )
    slow(engine)
    completion = engine.generate(GROUPED, 12, do_sample=False)
    assert completion.tokens == whole(pair, GROUPED)
    again = engine.generate(GROUPED, 12, do_sample=False)
    assert again.tokens == completion.tokens


def slow(engine: EdgePrompt) -> None:
    """Have a device believe that it is slower than its link."""
    for tokens in (64, 128, 256):
        engine._loader.speed.computed(0, tokens, 0.1 * tokens)


def test_what_is_computed_behind_inexact_blocks_is_not_kept_as_exact(
    pair: ModelPair, service: SegmentService, tmp_path: Path
) -> None:
    store = KVStore(tmp_path, key=bytes(32))
    half = PromptHierarchy([Segment(SHARED[:256], Level.PUBLIC)])
    EdgePrompt(pair.draft, pair.tokenizer, store=store).publish(half, [Precision.INT8])
    long = PromptHierarchy(
        [Segment(SHARED[:400], Level.PUBLIC), Segment([7], Level.PRIVATE)]
    )
    report = EdgePrompt(pair.draft, pair.tokenizer, store=store).load(long)
    assert (report.in_store, report.computed) == (1, 1)
    strict = EdgePrompt(pair.draft, pair.tokenizer, store=store, max_error=0.0)
    logits = strict.logits(long)
    with torch.inference_mode():
        exact = pair.draft(torch.tensor([long.tokens])).logits[0, -2:]
    assert (logits - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_a_link_that_stalls_is_not_waited_for(
    pair: ModelPair, service: SegmentService
) -> None:
    short = PromptHierarchy(
        [Segment(SHARED[:200], Level.PUBLIC), Segment([7, 8], Level.PRIVATE)]
    )
    layer = 200 * 2 * 2 * 32 * 4
    # The first of two layers comes in 40 ms, then next to nothing.
    rate = TraceRate([0.0, 0.06, 1000.0], [layer / 0.08, 1.0, 1.0])
    engine, _ = device(
        pair, service, Link(up=1e9, down=rate), precisions=[Precision.EXACT]
    )
    engine._loader.link.arrived(layer, 0.08)
    for tokens in (100, 200):
        engine._loader.speed.computed(0, tokens, SECONDS_PER_TOKEN * tokens)
    completion = engine.generate(short, 4, do_sample=False)
    assert completion.tokens == whole(pair, short)[:4]
    assert completion.report.computed == 1
    assert completion.time_to_first_token < 4 * 0.4


def test_what_is_loaded_ahead_is_whole(
    pair: ModelPair, service: SegmentService
) -> None:
    layer = 200 * 2 * 2 * 32 * 4
    rate = TraceRate([0.0, 0.06, 1000.0], [layer / 0.08, 1.0, 1.0])
    engine, source = device(
        pair, service, Link(up=1e9, down=rate), precisions=[Precision.EXACT]
    )
    engine._loader.link.arrived(layer, 0.08)
    short = PromptHierarchy([Segment(SHARED[:200], Level.PUBLIC)])
    assert engine.load(short).computed == 1
    requests = source.requests
    assert engine.load(short).in_memory == 1
    assert source.requests == requests


def test_a_source_that_never_answers_is_told_of_once(
    pair: ModelPair, service: SegmentService, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _ = device(pair, service, SLOW, lambda s: _Cut(s, 0, math.inf))
    with caplog.at_level("WARNING"):
        engine.generate(prompt(), 2)
        engine.load(PromptHierarchy([Segment(SHARED[:300], Level.PUBLIC)]))
    assert sum("Nothing has come" in line for line in caplog.messages) == 1
