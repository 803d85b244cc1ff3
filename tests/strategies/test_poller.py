"""Replies are looked for one by one, at once and without end of threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from flower_ext.strategies import TwoStageCoded
from flower_ext.strategies.poller import ReplyPoller

if TYPE_CHECKING:
    from tests.strategies.conftest import FakeGrid, Federation

Pull = Callable[[list[str]], list[Any]]


@pytest.fixture
def poll(
    fake_grid: type[FakeGrid], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Pull], ReplyPoller]]:
    """Return a function that makes a poller over a pull function, closed at the end."""
    pollers: list[ReplyPoller] = []

    def make(pull: Pull) -> ReplyPoller:
        grid = fake_grid(lambda message: (None, 0.0), [])
        monkeypatch.setattr(grid, "pull_messages", pull)
        pollers.append(ReplyPoller(grid))
        return pollers[-1]

    yield make
    for poller in pollers:
        poller.close()


def next_id(poller: ReplyPoller) -> str:
    """Return the id of the message that is answered next, within five seconds."""
    found = poller.get(5)
    assert found is not None
    return found[0]


def test_pull_that_blocks_holds_up_no_other(
    poll: Callable[[Pull], ReplyPoller],
) -> None:
    uploaded = threading.Event()

    def pull(ids: list[str]) -> list[Any]:
        [message_id] = ids
        if message_id == "large":
            uploaded.wait(5)
        return [f"reply to {message_id}"]

    poller = poll(pull)
    start = time.monotonic()
    poller.add(["large", "small", "tiny"])
    found = {next_id(poller), next_id(poller)}

    assert found == {"small", "tiny"}
    assert time.monotonic() - start < 1
    uploaded.set()
    answer: object = poller.get(5)  # not a Message here
    assert answer == ("large", "reply to large")


def test_first_look_is_at_once_and_later_ones_are_rarer(
    poll: Callable[[Pull], ReplyPoller],
) -> None:
    looks: list[float] = []

    def pull(ids: list[str]) -> list[Any]:
        looks.append(time.monotonic())
        return []

    poller = poll(pull)
    start = time.monotonic()
    poller.add(["a"])

    assert poller.get(1.5) is None
    assert looks[0] - start < 0.02
    waits = [b - a for a, b in itertools.pairwise(looks)]
    assert waits[0] < 0.1
    assert waits[-1] > 0.2
    assert 6 <= len(looks) <= 14


def test_dropped_message_is_looked_for_no_more(
    poll: Callable[[Pull], ReplyPoller],
) -> None:
    looks: list[str] = []

    def pull(ids: list[str]) -> list[Any]:
        looks.extend(ids)
        return []

    poller = poll(pull)
    poller.add(["a"])
    poller.get(0.05)
    poller.drop("a")
    poller.get(0.05)
    seen = len(looks)

    assert poller.get(0.3) is None
    assert len(looks) <= seen + 1  # a look that was under way


def test_error_of_a_pull_surfaces(poll: Callable[[Pull], ReplyPoller]) -> None:
    def pull(ids: list[str]) -> NoReturn:
        raise ConnectionError("SuperLink is gone")

    poller = poll(pull)
    poller.add(["a"])

    with pytest.raises(ConnectionError, match="SuperLink is gone"):
        poller.get(2)


def test_error_of_the_grid_ends_the_run(
    federation: type[Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = federation(3)

    def pull(ids: list[str]) -> NoReturn:
        raise ConnectionError("SuperLink is gone")

    monkeypatch.setattr(nodes.grid, "pull_messages", pull)
    with pytest.raises(ConnectionError, match="SuperLink is gone"):
        nodes.run(TwoStageCoded())


def test_error_in_a_round_leaves_no_thread(
    federation: type[Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(TwoStageCoded, "plan_round", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        federation(3).run(TwoStageCoded())
