"""What a run has measured is what its event files say."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Result

from flower_ext.clients import CodedClientApp
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.speculative.latency import LatencyHistogram
from flower_ext.speculative.totals import DSSDTotals
from flower_ext.strategies import (
    DSSDEvaluation,
    TwoStageCoded,
    WithCheckpoints,
    WithInference,
    WithTensorBoard,
)

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

pytest.importorskip("tensorboard", reason="needs flower-ext[tensorboard]")

Curves = dict[str, list[tuple[int, Any]]]


@pytest.fixture
def read() -> Callable[[Path], Curves]:
    """Return a function that reads event files as TensorBoard does."""
    from tensorboard.backend.event_processing import event_accumulator  # noqa: PLC0415

    def curves(folder: Path) -> Curves:
        found = event_accumulator.EventAccumulator(str(folder))
        found.Reload()
        return {
            tag: [(event.step, event.value) for event in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]
        }

    return curves


def expected(result: Result) -> Curves:
    """Return a result's metrics as curves."""
    curves: Curves = {}
    groups: dict[str, Mapping[int, MetricRecord]] = {
        "train": result.train_metrics_clientapp,
        "evaluate": result.evaluate_metrics_clientapp,
        "server": result.evaluate_metrics_serverapp,
    }
    for group, rounds in groups.items():
        for server_round, metrics in rounds.items():
            for name, value in metrics.items():
                if not isinstance(value, list):
                    at = curves.setdefault(f"{group}/{name}", [])
                    at.append((server_round, pytest.approx(value, rel=1e-6)))
    return curves


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": 0.1 * server_round, "per-class": [0.1, 0.2]})


def test_a_coded_run_is_written_round_by_round(
    federation: type[Federation], tmp_path: Path, read: Callable[[Path], Curves]
) -> None:
    def evaluate_and_look(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 2:  # while the run goes on
            assert [step for step, _ in read(tmp_path)["train/loss"]] == [1, 2]
        return evaluate(server_round, arrays)

    strategy = WithTensorBoard(TwoStageCoded(), tmp_path)
    result = federation(4).run(strategy, num_rounds=3, evaluate_fn=evaluate_and_look)

    found = read(tmp_path)
    assert found == expected(result)
    assert {"train/flower-ext.redundancy", "evaluate/accuracy"} <= found.keys()
    assert [step for step, _ in found["server/accuracy"]] == [0, 1, 2, 3]


def test_a_run_that_goes_on_is_written_once(
    federation: type[Federation], tmp_path: Path, read: Callable[[Path], Curves]
) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def killed(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 2:
            raise Killed

    saved, events = tmp_path / "saved", tmp_path / "events"
    first = WithTensorBoard(WithCheckpoints(TwoStageCoded(), saved), events)
    with pytest.raises(Killed):
        federation(4).run(first, num_rounds=3, evaluate_fn=killed)
    inner = WithCheckpoints(TwoStageCoded(), saved, resume_from=saved)
    result = federation(4).run(WithTensorBoard(inner, events), num_rounds=3)

    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
    assert read(events) == expected(result)


def test_what_inference_measures_is_written_too(
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
    tmp_path: Path,
    read: Callable[[Path], Curves],
) -> None:
    def task(msg: Message, context: Context) -> Message:
        totals = DSSDTotals(
            num_prompts=1,
            num_tokens=10,
            seconds=1.0,
            rounds=4,
            drafted=8,
            examined=5,
            accepted=3,
            latency_histogram=LatencyHistogram.of([1.0]),
            token_latency_histogram=LatencyHistogram.of([0.1], 10),
        )
        metrics = MetricRecord(totals.to_metrics())
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    app = coded_client()
    app.evaluate("dssd")(task)
    drafting = DSSDEvaluation(edge="in-process", drafter_weights="node")
    strategy = WithTensorBoard(WithInference(TwoStageCoded(), drafting), tmp_path)
    result = federation(3, app).run(strategy, num_rounds=2)

    found = read(tmp_path)
    assert found == expected(result)
    assert found["evaluate/dssd.acceptance-rate"] == [
        (1, pytest.approx(0.6)),
        (2, pytest.approx(0.6)),
    ]


def test_it_is_the_outermost(federation: type[Federation], tmp_path: Path) -> None:
    inside = WithTensorBoard(TwoStageCoded(), tmp_path / "events")
    with pytest.raises(FlowerExtError, match="outermost"):
        federation(3).run(WithCheckpoints(inside, tmp_path / "saved"))
    with pytest.raises(InvalidInputError, match="not WithTensorBoard"):
        WithTensorBoard(inside, tmp_path)
    with pytest.raises(InvalidInputError, match="path of a folder"):
        WithTensorBoard(FedAvg(), " ")


def test_what_is_missing_is_named(
    federation: type[Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FlowerExtError, match=r"flower-ext\[tensorboard\]"):
        federation(3).run(WithTensorBoard(TwoStageCoded(), tmp_path / "events"))
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="file"):
        federation(3).run(WithTensorBoard(TwoStageCoded(), tmp_path / "file"))
