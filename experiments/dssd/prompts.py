"""Prompts: built-in ones, or those of Spec-Bench and MT-bench."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flower_ext.errors import InvalidInputError

__all__ = ["BUILT_IN", "prompt_ids", "read_prompts"]

# Of the kind that the shipped models know: tiny Shakespeare's plays.
BUILT_IN = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, "
    "speak.\n\nFirst Citizen:\nYou are all resolved rather to die than to famish?\n\n"
    "All:\nResolved. resolved.\n\nFirst Citizen:\n",
    "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and "
    "Juliet is the sun.\nArise, fair sun, and kill the envious moon,\n",
    "KING RICHARD III:\nNow is the winter of our discontent\nMade glorious summer by "
    "this sun of York;\nAnd all the clouds that lour'd upon our house\n",
    "MENENIUS:\nWhat work's, my countrymen, in hand? where go you\nWith bats and "
    "clubs? The matter? speak, I pray you.\n\nFirst Citizen:\n",
    "PROSPERO:\nIf by your art, my dearest father, you have\nPut the wild waters in "
    "this roar, allay them.\n\nMIRANDA:\n",
    "DUKE VINCENTIO:\nOf government the properties to unfold,\nWould seem in me to "
    "affect speech and discourse;\n\nESCALUS:\n",
    "PETRUCHIO:\nGood morrow, Kate; for that's your name, I hear.\n\nKATHARINA:\n",
    "LEONTES:\nToo hot, too hot!\nTo mingle friendship far is mingling bloods.\n\n",
)


def read_prompts(path: str | Path) -> list[str]:
    """Return the first turn of every question in a file of JSON lines.

    Parameters
    ----------
    path : str | Path
        One object a line with ``turns``, a list of strings: Spec-Bench's form.

    Raises
    ------
    InvalidInputError
        If there is no such file, or a line is no question; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(
            f"There is no file {str(path)!r}: give one of JSON lines with turns, as "
            "Spec-Bench's question.jsonl, or leave it out for built-in prompts."
        )
    found = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            turn = json.loads(line)["turns"][0]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InvalidInputError(
                f"{path}, line {number}: a question needs turns, a list of at least "
                f"one string ({error!r})."
            ) from error
        found.append(str(turn))
    if not found:
        raise InvalidInputError(f"{path} has no questions; it needs one a line.")
    return found


def prompt_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[int]:
    """Return the last ``longest`` tokens of a prompt, at least one."""
    ids: list[int] = tokenizer(text)["input_ids"]
    if not ids:
        raise InvalidInputError(f"The prompt {text!r} has no tokens: give a text.")
    return ids[-longest:]
