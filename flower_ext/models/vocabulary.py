"""The ids that models which share a tokenizer have in common."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flower_ext.errors import InvalidInputError

__all__ = ["shared_vocab_size"]


def shared_vocab_size(
    tokenizer: PreTrainedTokenizerBase, **models: PreTrainedModel
) -> int:
    """Return the number of ids that every model gives a logit for.

    Checkpoints of one family often pad their vocabulary to different sizes, with ids
    that no text has. Such ids are cut off: ids from 0 to the returned number, it
    excluded, mean the same to all.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that the models share.
    **models : PreTrainedModel
        The models by the names that an error message gives them.

    Raises
    ------
    InvalidInputError
        A model has fewer logits than the tokenizer has ids.
    """
    needed = max(tokenizer.get_vocab().values()) + 1
    sizes = {name: _num_logits(model) for name, model in models.items()}
    for name, size in sizes.items():
        if size < needed:
            raise InvalidInputError(
                f"{name} gives {size} logits, but its tokenizer has ids up to "
                f"{needed - 1}; give the tokenizer that the model was trained with, or "
                f"resize the model's embeddings to {needed}"
            )
    return min(sizes.values())


def _num_logits(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)
