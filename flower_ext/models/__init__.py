"""Models: a drafter and a target that speak the same language, loaded from disk.

A pair comes from two folders, from two ids in the local Hugging Face cache, or with the
package itself, which carries a small one. Nothing is fetched unless it is asked for.
"""

from flower_ext.models.default import (
    DEFAULT,
    DEFAULT_DRAFT,
    DEFAULT_TARGET,
    DEFAULT_TOKENIZER,
)
from flower_ext.models.fingerprint import tokenizer_fingerprint
from flower_ext.models.loading import LoadedModel, load_model
from flower_ext.models.pair import ModelPair, default_pair, load_pair
from flower_ext.models.vocabulary import shared_vocab_size

__all__ = [
    "DEFAULT",
    "DEFAULT_DRAFT",
    "DEFAULT_TARGET",
    "DEFAULT_TOKENIZER",
    "LoadedModel",
    "ModelPair",
    "default_pair",
    "load_model",
    "load_pair",
    "shared_vocab_size",
    "tokenizer_fingerprint",
]
