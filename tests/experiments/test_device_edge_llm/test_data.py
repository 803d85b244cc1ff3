"""The device-edge app's texts: repeatable, and of different speakers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from device_edge_llm.data import (
    WINDOW,
    check_data,
    load_partition,
    models,
    prompts_of,
)
from device_edge_llm.settings import Settings

from flower_ext.errors import InvalidInputError


@pytest.fixture
def settings(run_config: dict[str, str | int | float | bool]) -> Settings:
    """Return the app's own settings, with few texts."""
    settings = Settings.from_run_config(run_config)
    return replace(settings, texts_per_partition=4, prompts_per_node=2)


@pytest.fixture
def real(settings: Settings, tmp_path: Path) -> Settings:
    """Return settings for a small file of speeches, some long and some short."""
    by_speaker = {
        f"SPEAKER {number}": [
            f"{i}/{number} is what I say. " * (1 + number % 3) for i in range(12)
        ]
        for number in range(9)
    }
    (tmp_path / "by_speaker.json").write_text(json.dumps(by_speaker))
    return replace(
        settings, data="tinyshakespeare", data_dir=str(tmp_path), num_partitions=3
    )


def test_written_partitions_repeat_and_are_disjoint(settings: Settings) -> None:
    parts = [load_partition(settings, number) for number in range(3)]
    assert [part.windows.shape for part in parts] == [(4, WINDOW)] * 3
    rows = [tuple(row) for part in parts for row in part.windows.tolist()]
    assert len(set(rows)) == 12
    load_partition.cache_clear()
    again = load_partition(settings, 1)
    assert torch.equal(again.windows, parts[1].windows)
    assert again.prompts == parts[1].prompts
    other = load_partition(replace(settings, seed=1), 1)
    assert not torch.equal(other.windows, again.windows)


def test_a_partition_does_not_depend_on_the_others(settings: Settings) -> None:
    alone = load_partition(replace(settings, num_partitions=2), 1)
    assert torch.equal(alone.windows, load_partition(settings, 1).windows)


def test_written_texts_begin_with_their_speaker(settings: Settings) -> None:
    part = load_partition(settings, 5)
    assert part.speakers == ("ROMEO",)
    texts = models().tokenizer.batch_decode(part.windows)
    assert all(text.startswith("<|endoftext|>ROMEO:\n") for text in texts)
    assert all(prompt.startswith("<|endoftext|>ROMEO:\n") for prompt in part.prompts)


def test_prompts_are_not_trained_on(settings: Settings) -> None:
    part = load_partition(settings, 5)
    texts = models().tokenizer.batch_decode(part.windows)
    assert not any(text.startswith(p) for text in texts for p in part.prompts)


def test_a_node_takes_prompts_from_its_partitions_in_turn(settings: Settings) -> None:
    # Of 12 partitions, node 1 of 8 stands for 1 and 9; node 5 for 5 alone.
    first, ninth = (load_partition(settings, number).prompts for number in (1, 9))
    assert prompts_of(settings, 1) == [first[0], ninth[0]]
    assert prompts_of(settings, 5) == [*load_partition(settings, 5).prompts]


def test_more_partitions_than_speakers_are_refused(settings: Settings) -> None:
    with pytest.raises(InvalidInputError, match="'num-partitions' is 100"):
        check_data(replace(settings, num_partitions=100))


def test_real_speakers_are_dealt_to_similar_partitions(real: Settings) -> None:
    parts = [load_partition(real, number) for number in range(3)]
    speakers = [name for part in parts for name in part.speakers]
    assert sorted(speakers) == [f"SPEAKER {number}" for number in range(9)]
    counts = [len(part.windows) for part in parts]
    assert max(counts) <= 1.2 * min(counts)
    load_partition.cache_clear()
    assert load_partition(real, 2).prompts == parts[2].prompts


def test_real_prompts_are_held_out(real: Settings) -> None:
    part = load_partition(real, 0)
    text = models().tokenizer.decode(part.windows.flatten())
    said = [prompt.partition(":\n")[2].split()[0] for prompt in part.prompts]
    assert len(said) == 2
    assert not any(f"\n{number} is" in text for number in said)
    # A tenth is held out, the tenth speech first.
    assert text.count(":\n0/") == 3
    assert text.count(":\n9/") == 2


def test_a_missing_file_is_named(settings: Settings, tmp_path: Path) -> None:
    absent = replace(settings, data="tinyshakespeare", data_dir=str(tmp_path))
    with pytest.raises(InvalidInputError, match=r"no file '.*by_speaker\.json'"):
        check_data(absent)
    (tmp_path / "by_speaker.json").write_text("[]")
    with pytest.raises(InvalidInputError, match="must map every speaker"):
        check_data(absent)


def test_too_few_speeches_are_refused(real: Settings) -> None:
    with pytest.raises(InvalidInputError, match="'num-partitions' is 20"):
        check_data(replace(real, num_partitions=20))
