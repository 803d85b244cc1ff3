"""DSSD: how much of what a drafter drafts is accepted, and what travels for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flower_ext.report.content import Figure, Sample, Section, Table, bars, line
from flower_ext.report.training import rounds_section

__all__ = ["drafting_sections", "drafting_summary"]

_SUMMARY = {
    "acceptance": "acceptance",
    "tokens_per_round": "tokens per verdict",
    "tokens_per_second": "tokens per second",
    "uplink_bytes": "bytes up per token",
    "downlink_bytes": "bytes down per token",
    "prompts": "prompts",
}


def drafting_summary(found: Mapping[str, Any]) -> Table:
    """Return a line before training, and one after it."""
    summary = found["summary"]
    return Table(
        ["drafter", *_SUMMARY.values()],
        [
            [said, *(summary[when][name] for name in _SUMMARY)]
            for when, said in (
                ("before", "before training"),
                ("after", f"after round {len(found['rounds'])}"),
            )
        ],
    )


def drafting_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return what is to be seen of a drafter's training.

    Parameters
    ----------
    found : Mapping[str, Any]
        ``results.json`` of the app device_edge_llm.
    """
    rounds, before = found["rounds"], found["summary"]["before"]
    numbers = [each["server_round"] for each in rounds]
    acceptance = [before["acceptance"], *(each["acceptance"] for each in rounds)]
    target = found["settings"].get("target_acceptance")
    with_target = ""
    if target is not None:
        with_target = f" The target was {target:g}."
    figures = [
        Figure(
            "acceptance",
            "Acceptance",
            "Share of the drafted tokens that the large model came to and accepted. "
            "Round 0 is the drafter before training." + with_target,
            [line("acceptance", [0, *numbers], acceptance)],
            {
                "xaxis": {"title": {"text": "rounds of federated training"}},
                "yaxis": {"title": {"text": "share of tokens"}, "range": [0, 1]},
            },
            Table(
                ["round", "acceptance"], [*zip([0, *numbers], acceptance, strict=True)]
            ),
        ),
        Figure(
            "train-loss",
            "Training loss",
            "Mean over the partitions while they were trained on. Lower is better.",
            [line("loss", numbers, [each["train_loss"] for each in rounds], 1)],
            {
                "xaxis": {"title": {"text": "rounds of federated training"}},
                "yaxis": {"title": {"text": "nats per token"}, "rangemode": "tozero"},
            },
            Table(
                ["round", "loss (nats per token)"],
                [[each["server_round"], each["train_loss"]] for each in rounds],
            ),
        ),
        Figure(
            "traffic",
            "Bytes per token, round by round",
            "What travels for a token of text between a node and the edge. The better "
            "the drafter, the fewer verdicts a text takes, and the less travels.",
            [
                line("up", numbers, [each["uplink_bytes"] for each in rounds], 0),
                line("down", numbers, [each["downlink_bytes"] for each in rounds], 1),
            ],
            {
                "xaxis": {"title": {"text": "rounds of federated training"}},
                "yaxis": {"title": {"text": "bytes per token"}, "rangemode": "tozero"},
            },
            Table(
                ["round", "bytes up", "bytes down"],
                [
                    [e["server_round"], e["uplink_bytes"], e["downlink_bytes"]]
                    for e in rounds
                ],
            ),
        ),
    ]
    sections = [
        Section("Learning to draft", figures=figures),
        *rounds_section(found.get("timelines", {})),
    ]
    return sections + _samples(found.get("samples", []))


def _samples(samples: list[Mapping[str, Any]]) -> list[Section]:
    """Return texts with the origin of their tokens, and what protocols cost."""
    if not samples:
        return []
    texts = [
        Sample(
            each["drafter"],
            each["prompt"],
            [(token["text"], token["origin"]) for token in each["tokens"]],
            f"{each['accepted']} of {each['examined']} drafted tokens that the large "
            f"model came to were accepted, in {each['rounds']} verdicts.",
        )
        for each in samples
        if each["shown"]
    ]
    trained = [each for each in samples if each["drafter"] == samples[-1]["drafter"]]
    protocols = [each["protocol"] for each in trained]

    def per_token(name: str) -> list[float]:
        return [each[name] / each["length"] for each in trained]

    up, down = per_token("uplink_bytes"), per_token("downlink_bytes")
    parts = {
        "drafting": [1e3 * value for value in per_token("drafting_seconds")],
        "verifying": [1e3 * value for value in per_token("verification_seconds")],
        "on the link": [1e3 * value for value in per_token("transmission_seconds")],
    }
    figures = [
        Figure(
            "protocol-bytes",
            "Bytes per token, by protocol",
            "The same prompt with the same random choices under every protocol, by the "
            "trained drafter; the prompt counts as up. All protocols give the large "
            "model's own law. The scale is logarithmic: a step is ten times as much.",
            [bars("up", protocols, up, 0), bars("down", protocols, down, 1)],
            {
                "barmode": "group",
                "xaxis": {"type": "category"},
                "yaxis": {
                    "title": {"text": "bytes per token"},
                    "type": "log",
                    "dtick": 1,
                },
            },
            Table(["protocol", "up", "down"], [*zip(protocols, up, down, strict=True)]),
        ),
        Figure(
            "protocol-latency",
            "Time per token, by protocol",
            "Of the same texts: the device's computing, the edge's, and messages on "
            "the simulated link.",
            [
                bars(n, protocols, times, i)
                for i, (n, times) in enumerate(parts.items())
            ],
            {
                "barmode": "stack",
                "xaxis": {"type": "category"},
                "yaxis": {"title": {"text": "milliseconds per token"}},
            },
            Table(
                ["protocol", *(f"{name} (ms)" for name in parts)],
                [*zip(protocols, *parts.values(), strict=True)],
            ),
        ),
    ]
    note = (
        "The server has generated these texts itself, on a public prompt, with the "
        "drafters that it had before training and after. What nodes are prompted "
        "with, and what they generate, stays with them."
    )
    return [
        Section("Drafted and accepted", note, samples=texts),
        Section("What a protocol costs", figures=figures),
    ]
