"""Where the small pair that ships with the package lies.

Both models are Llamas that ``experiments/train_default_pair.py`` trained on tiny
Shakespeare. They are there so that everything runs, and can be tested, without a
download. Of what the target samples, an exact verifier accepts 0.83 at temperature 1,
0.85 at 0.7 and 0.80 of the greedy tokens; but on held-out text the target foresees no
more than its drafter does (perplexity 34.8 and 35.2), having six times its parameters
and a text too short for them. The script prints these figures. They know no end of a text: they start one at ``<|endoftext|>`` and then give
that token next to no probability, so generation runs to the length it is given.
"""

from pathlib import Path

__all__ = ["DEFAULT", "DEFAULT_DRAFT", "DEFAULT_TARGET", "DEFAULT_TOKENIZER"]

# The word that stands for the shipped pair wherever a path or an id is expected.
DEFAULT = "default"

_FOLDER = Path(__file__).parent / "default"
DEFAULT_DRAFT = _FOLDER / "draft"
DEFAULT_TARGET = _FOLDER / "target"
DEFAULT_TOKENIZER = _FOLDER / "tokenizer"
