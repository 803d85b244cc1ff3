"""A drafter and the target that verifies it (DSSD, arXiv:2507.12000)."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flower_ext.errors import InvalidInputError
from flower_ext.models.default import DEFAULT
from flower_ext.models.fingerprint import tokenizer_fingerprint
from flower_ext.models.loading import Source, load_model, load_tokenizer
from flower_ext.models.vocabulary import shared_vocab_size

__all__ = ["ModelPair", "default_pair", "load_pair"]


@dataclass(frozen=True)
class ModelPair:
    """Two models over one vocabulary.

    Parameters
    ----------
    draft : PreTrainedModel
        The small model, in evaluation mode and without gradients.
    target : PreTrainedModel
        The large model, likewise.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer of both.
    vocab_size : int
        Ids below it have a logit in both models and mean the same to both; logits from
        there on are padding, to be cut off before a softmax. No id of the tokenizer is
        among them.
    """

    draft: PreTrainedModel
    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int


def load_pair(
    draft: Source,
    target: Source,
    *,
    tokenizer: Source | PreTrainedTokenizerBase | None = None,
    fetch: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> ModelPair:
    """Load a drafter and a target, and see that they fit.

    Parameters
    ----------
    draft, target : str or path
        Folders that ``save_pretrained`` wrote, Hugging Face ids, or ``"default"`` for
        the models that ship with the package.
    tokenizer : str, path or PreTrainedTokenizerBase (default: None)
        The tokenizer of both, for checkpoints that come without one; the models' own
        are then not looked at. By default both have theirs, and these must be the same.
    fetch : bool (default: False)
        Whether what is not in the local cache may be downloaded.
    dtype : torch.dtype (default: None)
        Precision of the parameters; by default the one that each checkpoint states.
    device : str or torch.device (default: "cpu")
        Where both models are put.

    Raises
    ------
    InvalidInputError
        A model is not there, the tokenizers differ, or a model has fewer logits than
        the tokenizer has ids.
    """
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = load_tokenizer(tokenizer, fetch=fetch)
    small, small_tokenizer = load_model(
        draft,
        role="draft",
        tokenizer=tokenizer,
        fetch=fetch,
        dtype=dtype,
        device=device,
    )
    large, large_tokenizer = load_model(
        target,
        role="target",
        tokenizer=tokenizer,
        fetch=fetch,
        dtype=dtype,
        device=device,
    )
    if tokenizer_fingerprint(small_tokenizer) != tokenizer_fingerprint(large_tokenizer):
        raise InvalidInputError(
            f"draft={str(draft)!r} and target={str(target)!r} have different "
            "tokenizers, so the same id means different things to them; choose two "
            "models of one family, or give tokenizer= if you know that one fits both"
        )
    return ModelPair(
        small,
        large,
        large_tokenizer,
        shared_vocab_size(large_tokenizer, draft=small, target=large),
    )


def default_pair(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> ModelPair:
    """Load the small pair that ships with the package.

    Parameters
    ----------
    dtype : torch.dtype (default: torch.float32)
        Precision of the parameters, which are stored in float16.
    device : str or torch.device (default: "cpu")
        Where both models are put.
    """
    return load_pair(DEFAULT, DEFAULT, dtype=dtype, device=device)
