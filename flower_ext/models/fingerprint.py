"""The fingerprint of a tokenizer: equal for two that turn texts into the same ids."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["tokenizer_fingerprint"]

# How a caller batches texts, and the version of the file's format: no token depends
# on them.
_INCIDENTAL = ("version", "truncation", "padding")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what two tokenizers have in common exactly when they are the same one.

    It covers the vocabulary with its ids, the merges, the normaliser, pre-tokenizer,
    post-processor and decoder, the added tokens, and which tokens are special. It does
    not cover where the tokenizer was loaded from, nor how it pads and truncates, the
    padding token's name included.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any tokenizer of transformers. One without a backend of the tokenizers library
        is known by its class, vocabulary and added tokens only.

    Returns
    -------
    str
        A SHA-256 digest, 64 hexadecimal digits.
    """
    special = {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if name != "pad_token"
    }
    content = {"tokenizer": _content(tokenizer), "special_tokens": special}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "added_tokens": {
                id_: repr(token)
                for id_, token in tokenizer.added_tokens_decoder.items()
            },
        }
    content = json.loads(backend.to_str())
    return {key: value for key, value in content.items() if key not in _INCIDENTAL}
