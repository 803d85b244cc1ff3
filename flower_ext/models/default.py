"""Where the small pair that ships with the package lies.

Both models are Llamas that ``experiments/train_default_pair.py`` trained on tiny
Shakespeare. They are there so that everything runs, and can be tested, without a
download. They know no end of a text: they start one at ``<|endoftext|>`` and then give
that token next to no probability, so generation runs to the length it is given.

An exact verifier accepts the drafter's tokens at a rate of 0.83 at temperature 1, of
0.85 at 0.7, and of 0.80 where both are greedy. The target is there to be imitated: its
perplexity on held-out text is 34.8, and that of the drafter, which has a sixth of its
parameters, is 35.2. The script prints these figures.
"""

from pathlib import Path

__all__ = ["DEFAULT", "DEFAULT_DRAFT", "DEFAULT_TARGET", "DEFAULT_TOKENIZER"]

# The word that stands for the shipped pair wherever a path or an id is expected.
DEFAULT = "default"

_FOLDER = Path(__file__).parent / "default"
DEFAULT_DRAFT = _FOLDER / "draft"
DEFAULT_TARGET = _FOLDER / "target"
DEFAULT_TOKENIZER = _FOLDER / "tokenizer"
