"""Text, split by speaker: what nodes train on, and what they are prompted with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from device_edge_llm.settings import GENERATED, Settings
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair, default_pair
from flower_ext.models.cache_argument import forward_cache

WINDOW = 48  # tokens of a training text
PROMPT = 8  # tokens of a prompt after the speaker's name
HELD_OUT = 10  # one speech in so many is for prompts
BY_SPEAKER = "by_speaker.json"

# Some who speak in what the shipped pair was trained on.
SPEAKERS = (
    "GLOUCESTER",
    "DUKE VINCENTIO",
    "KING RICHARD II",
    "LEONTES",
    "CORIOLANUS",
    "ROMEO",
    "PETRUCHIO",
    "JULIET",
    "MENENIUS",
    "QUEEN MARGARET",
    "WARWICK",
    "KING RICHARD III",
    "HENRY BOLINGBROKE",
    "ISABELLA",
    "KING EDWARD IV",
    "KING HENRY VI",
    "BUCKINGHAM",
    "FRIAR LAURENCE",
    "QUEEN ELIZABETH",
    "PROSPERO",
    "VOLUMNIA",
    "PAULINA",
    "ANGELO",
    "AUTOLYCUS",
    "TRANIO",
    "EDWARD",
    "FERDINAND",
    "EARL OF SALISBURY",
)

# Loading takes milliseconds, and its bars would be all over the stream of a run.
disable_progress_bar()

Speech = tuple[str, str]  # who speaks, and what


@dataclass(frozen=True)
class Partition:
    """One node's worth of text.

    Parameters
    ----------
    speakers : tuple[str, ...]
        Who speaks in it, and in no other partition.
    windows : torch.Tensor
        Ids to train on, shape (texts, ``WINDOW``).
    prompts : tuple[str, ...]
        Beginnings of texts that are not in the windows; as many as
        ``prompts-per-node``, or as there are.
    """

    speakers: tuple[str, ...]
    windows: torch.Tensor
    prompts: tuple[str, ...]


@lru_cache(maxsize=1)
def models() -> ModelPair:
    """Return the pair that ships with flower-ext, loaded once per process."""
    with torch.random.fork_rng(devices=[]):
        return default_pair()


@lru_cache(maxsize=64)
def load_partition(settings: Settings, number: int) -> Partition:
    """Return a partition, made or read once per process.

    Parameters
    ----------
    settings : Settings
        Names the data and the seed.
    number : int
        From 0, below ``num-partitions``.

    Raises
    ------
    InvalidInputError
        If the data is not there, or has too few speakers.
    """
    if settings.data == GENERATED:
        return _written(settings, number)
    return _read(settings, number)


def check_data(settings: Settings) -> None:
    """Raise where :func:`load_partition` would, without loading anything large.

    Raises
    ------
    InvalidInputError
        If the data is not there, or has too few speakers.
    """
    if settings.data == GENERATED:
        _speaker(settings, settings.num_partitions - 1)
    else:
        _groups(settings)


def prompts_of(settings: Settings, node: int) -> list[str]:
    """Return what a node is prompted with: beginnings of held-out texts.

    Parameters
    ----------
    settings : Settings
        Says how many there are.
    node : int
        The node's number, from 0.

    Returns
    -------
    list[str]
        Taken in turn from the partitions that the node stands for, which are those that
        leave ``node`` on division by the number of nodes.
    """
    count = settings.num_partitions
    numbers = range(node % count, count, settings.num_nodes)
    held = [load_partition(settings, number).prompts for number in numbers]
    turns = max(map(len, held))
    found = [prompts[i] for i in range(turns) for prompts in held if i < len(prompts)]
    return found[: settings.prompts_per_node]


def public_text(settings: Settings) -> str:
    """Have the target write what all may see, and goes before private prompts."""
    pair, length = models(), settings.public_tokens
    opening = pair.tokenizer(f"{pair.tokenizer.bos_token}ALL:\n")["input_ids"]
    # Of a purpose that no partition has.
    generator = _generator(settings.seed, 0, 2)
    ids = write(pair.target, torch.tensor([opening]), length, generator)
    text: str = pair.tokenizer.decode(ids[0], skip_special_tokens=True)
    return text


# -- texts that the target writes ------------------------------------------------------


def _written(settings: Settings, number: int) -> Partition:
    """Have the target write as a speaker."""
    speaker, pair = _speaker(settings, number), models()
    tokenizer = pair.tokenizer
    opening = tokenizer(f"{tokenizer.bos_token}{speaker}:\n")["input_ids"]
    windows, held_out = (
        write(
            pair.target,
            torch.tensor([opening]).repeat(count, 1),
            length,
            _generator(settings.seed, number, purpose),
        )
        for purpose, (count, length) in enumerate(
            (
                (settings.texts_per_partition, WINDOW),
                (settings.prompts_per_node, PROMPT + len(opening)),
            )
        )
    )
    return Partition((speaker,), windows, tuple(tokenizer.batch_decode(held_out)))


@torch.inference_mode()
def write(
    model: PreTrainedModel,
    prompts: torch.Tensor,
    length: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Continue prompts at temperature 1.

    Parameters
    ----------
    model : PreTrainedModel
        Writes.
    prompts : torch.Tensor
        Ids of shape (texts, at most ``length``).
    length : int
        Tokens of a text, its prompt included.
    generator : torch.Generator
        Draws the tokens.

    Returns
    -------
    torch.Tensor
        Ids of shape (texts, ``length``).
    """
    ids, fresh, cache = prompts, prompts, DynamicCache(config=model.config)
    while ids.shape[1] < length:
        kept = forward_cache(model, cache)
        logits = model(input_ids=fresh, use_cache=True, **kept).logits
        chances = torch.softmax(logits[:, -1], dim=-1)
        fresh = torch.multinomial(chances, 1, generator=generator)
        ids = torch.cat([ids, fresh], dim=1)
    return ids.clone()


def _speaker(settings: Settings, number: int) -> str:
    """Return who speaks in a partition of generated text."""
    if settings.num_partitions > len(SPEAKERS):
        raise InvalidInputError(
            f"Run-config key 'num-partitions' is {settings.num_partitions}, and "
            f'data="{GENERATED}" has {len(SPEAKERS)} speakers, one for each partition: '
            f"set it to at most {len(SPEAKERS)}."
        )
    return SPEAKERS[number]


def _generator(*entropy: int) -> torch.Generator:
    """Return a generator that is seeded by several numbers."""
    word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word) >> 1)


# -- texts that are read ---------------------------------------------------------------


def _read(settings: Settings, number: int) -> Partition:
    """Return the speeches of a group of speakers."""
    speakers, speeches = _groups(settings)[number]
    tokenizer = models().tokenizer
    last = len(speeches) - 1
    held_out = range(min(HELD_OUT - 1, last), len(speeches), HELD_OUT)
    text = "\n\n".join(
        f"{speaker}:\n{speech}"
        for i, (speaker, speech) in enumerate(speeches)
        if i not in held_out
    )
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    count = len(ids) // WINDOW
    if not count:
        raise _too_many_partitions(settings)
    rng = np.random.default_rng([settings.seed, number])
    wanted = min(settings.prompts_per_node, len(held_out))
    prompts = []
    for i in sorted(rng.choice(held_out, wanted, replace=False).tolist()):
        speaker, speech = speeches[i]
        opening = f"{tokenizer.bos_token}{speaker}:\n"
        length = len(tokenizer(opening)["input_ids"]) + PROMPT
        prompts.append(
            tokenizer.decode(tokenizer(opening + speech)["input_ids"][:length])
        )
    return Partition(
        speakers, ids[: count * WINDOW].view(count, WINDOW), tuple(prompts)
    )


@lru_cache(maxsize=1)
def _groups(settings: Settings) -> list[tuple[tuple[str, ...], list[Speech]]]:
    """Deal speakers to partitions of similar size, and return their speeches."""
    by_speaker = _by_speaker(settings.data_dir)
    sizes = {speaker: sum(map(len, said)) for speaker, said in by_speaker.items()}
    loads = [0] * settings.num_partitions
    groups: list[list[str]] = [[] for _ in loads]
    for speaker in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        groups[lightest].append(speaker)
        loads[lightest] += sizes[speaker]
    found = [
        (
            tuple(group),
            [(name, speech) for name in group for speech in by_speaker[name]],
        )
        for group in groups
    ]
    if min(len(speeches) for _, speeches in found) < 2:
        raise _too_many_partitions(settings)
    return found


def _by_speaker(data_dir: str) -> dict[str, list[str]]:
    """Return every speaker's speeches."""
    path = Path(data_dir).expanduser()
    if path.is_dir():
        path /= BY_SPEAKER
    if not path.is_file():
        raise InvalidInputError(
            f"Run-config key 'data-dir' is {data_dir!r}, and there is no file "
            f"'{path}': give the absolute path of a folder with {BY_SPEAKER} (speaker "
            "→ list of speeches), or train on what the target writes: "
            f'-c \'data="{GENERATED}" data-dir=""\'.'
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"'{path}' is no JSON: {error}.") from error
    if not isinstance(found, dict) or not all(
        isinstance(said, list) and all(isinstance(speech, str) for speech in said)
        for said in found.values()
    ):
        raise InvalidInputError(
            f"'{path}' must map every speaker to a list of speeches, all of them text."
        )
    return {speaker: said for speaker, said in found.items() if any(said)}


def _too_many_partitions(settings: Settings) -> InvalidInputError:
    """Return the error for partitions that nobody speaks in."""
    return InvalidInputError(
        f"Run-config key 'num-partitions' is {settings.num_partitions}, and the "
        f"speeches in {settings.data_dir!r} are too few for that: set it lower."
    )
