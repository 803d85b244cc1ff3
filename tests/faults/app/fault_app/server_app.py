"""The ServerApp: coded rounds with a checkpoint after each, every one reported."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from flower_ext.strategies import (
    CodedFedAvg,
    TwoStageCoded,
    WithCheckpoints,
    WithInference,
)
from flower_ext.strategies.coded_strategy import CodedStrategy

from .control import Control
from .training import PARTITIONS, initial

_TOKENS = 24  # of a text

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and report every round when it is done."""
    config = context.run_config
    control = Control(str(config["control"]))
    training: dict[str, Any] = {
        "num_partitions": PARTITIONS,
        "fraction_evaluate": 0.0,
        # Rounds that end only with the whole update, on a machine of any speed.
        "deadline": 600.0,
        "min_coverage": 1.0,
        "min_train_nodes": 1,
        "min_available_nodes": int(config["num-nodes"]),
        **verification(int(config["verify-replies"])),
    }
    # Only rounds that wait for every node leave all of them idle for what follows.
    coded: CodedStrategy = (
        CodedFedAvg(code="uncoded", **training)
        if config["edge"]
        else TwoStageCoded(**training)
    )
    strategy: Strategy = coded
    inference: WithInference | None = None
    if config["edge"]:
        strategy = inference = WithInference(coded, generation(config))
    if folder := str(config["checkpoint-dir"]):
        resume_from = str(config["resume-from"]) or None
        strategy = WithCheckpoints(strategy, folder, resume_from=resume_from)

    def report(server_round: int, arrays: ArrayRecord) -> None:
        """Tell that a round is done, and what the model is."""
        if server_round == 0:
            return
        control.hold(f"before-report-{server_round}", run_id=context.run_id)
        found = {name: array.numpy() for name, array in arrays.items()}
        digest = hashlib.sha256(b"".join(a.tobytes() for a in found.values()))
        file = f"model-{context.run_id}-{server_round}.npz"
        np.savez(control.folder / file, **found)  # type: ignore[arg-type]
        measured = {
            name: value
            for name, value in coded.round_metrics[server_round].items()
            if isinstance(value, int | float)
        }
        control.tell(
            "report",
            run_id=context.run_id,
            round=server_round,
            digest=digest.hexdigest(),
            model=file,
            metrics=measured,
            liars={str(node): n for node, n in coded.liars.items()},
            inference={}
            if inference is None
            else dict(inference.inference_metrics.get(server_round, {})),
        )
        control.hold(f"after-report-{server_round}", run_id=context.run_id)

    strategy.start(
        grid,
        ArrayRecord({name: Array(array) for name, array in initial().items()}),
        num_rounds=int(config["num-rounds"]),
        evaluate_fn=report,
    )
    control.tell("finished", run_id=context.run_id)


def verification(liars: int) -> dict[str, Any]:
    """Return the strategy's arguments for so many nodes that may lie."""
    return {"verify_replies": liars} if liars else {}


def generation(config: dict[str, Any]) -> Any:
    """Return the evaluation by DSSD: greedy, so that texts can be told beforehand."""
    # Imported here because it takes seconds, which no other run should spend.
    from flower_ext.speculative import Sampling  # noqa: PLC0415
    from flower_ext.strategies import DSSDEvaluation, RunningEdge  # noqa: PLC0415

    return DSSDEvaluation(
        edge=RunningEdge(
            config["edge"], plaintext=True, patience=float(config["edge-patience"])
        ),
        drafter_weights="node",
        sampling=Sampling(temperature=0.0),
        max_new_tokens=_TOKENS,
        if_edge_is_lost=config["if-edge-is-lost"],
        if_all_fail="raise",
        timeout=600.0,
    )
