"""Spec-Bench's retrieval questions as prompts: public documents, a private question."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flower_ext.edgeprompt import Level, PromptHierarchy, Segment
from flower_ext.errors import InvalidInputError

__all__ = ["FILE", "Retrieval", "as_prompt", "read_retrievals"]

FILE = "spec_bench_question.jsonl"


@dataclass(frozen=True)
class Retrieval:
    """A question, and the documents that were found for it.

    Parameters
    ----------
    documents, question : str
        Put together they are the prompt.
    """

    documents: str
    question: str


def read_retrievals(folder: str | Path) -> list[Retrieval]:
    """Return the retrieval questions of Spec-Bench.

    Their documents come first, one a line, and the last line is the question.

    Parameters
    ----------
    folder : str | Path
        Where :data:`FILE` lies: JSON lines with ``category`` and ``turns``.

    Raises
    ------
    InvalidInputError
        If there is no such file, or no retrieval question in it, or a line is not one
        of these.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise InvalidInputError(
            f"There is no file {str(path)!r}: give --prompts a folder with "
            f"Spec-Bench's questions, named {FILE}, or leave it out."
        )
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            category, text = entry["category"], str(entry["turns"][0])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InvalidInputError(
                f"{path}, line {number}: a question needs a category and turns, a list "
                f"of at least one string ({error!r})."
            ) from error
        if category == "rag":
            documents, end, question = text.rpartition("\n")
            found.append(Retrieval(documents + end, question))
    if not found:
        raise InvalidInputError(f"{path} has no question of the category 'rag'.")
    return found


def as_prompt(
    retrieval: Retrieval, tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[PromptHierarchy, int]:
    """Return the prompt, and how many tokens of the documents were cut off at the end.

    Parameters
    ----------
    retrieval : Retrieval
        Documents, which become public, and the question, which becomes private.
    tokenizer : PreTrainedTokenizerBase
        The model's.
    longest : int
        Tokens that the prompt may have.

    Raises
    ------
    InvalidInputError
        If the question leaves no room for a document.
    """
    prompt = PromptHierarchy.from_text(
        [(Level.PUBLIC, retrieval.documents), (Level.PRIVATE, retrieval.question)],
        tokenizer,
    )
    private = prompt.private_tokens
    shared = prompt.tokens[: len(prompt) - len(private)]
    room = longest - len(private)
    if room < 1 or not shared or not private:
        raise InvalidInputError(
            f"A question of {len(private)} tokens with documents of {len(shared)} does "
            f"not go into {longest} tokens: take a model for longer texts."
        )
    segments = [Segment(shared[:room], Level.PUBLIC), Segment(private, Level.PRIVATE)]
    return PromptHierarchy(segments), max(0, len(shared) - room)
