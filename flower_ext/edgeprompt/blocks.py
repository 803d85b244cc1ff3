"""What of a prompt may leave the device: blocks of shared segments, and their names.

A block is a run of at most :data:`BLOCK_TOKENS` tokens of one public or group segment.
Its KV depends on the model and on everything before it, and so does its address, which
is all that a device ever says when it asks for it. The functions that send anything
take these types and no others, and a private segment cannot be turned into them.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from flower_ext.edgeprompt.errors import PrivateSegmentError
from flower_ext.edgeprompt.hierarchy import Level, Segment
from flower_ext.edgeprompt.precision import KVShape, Precision
from flower_ext.errors import InvalidInputError
from flower_ext.models.cache_argument import returned_cache

__all__ = [
    "BLOCK_TOKENS",
    "Address",
    "ModelIdentity",
    "SharedBlock",
    "SharedPrefix",
    "identity_of",
    "kv_shape",
]

BLOCK_TOKENS = 256
"""The most tokens of a block."""

_PUBLIC_KEY = b""
# What of a configuration no key and no value depends on.
_INCIDENTAL = frozenset(
    (
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "return_dict",
        "sep_token_id",
        "transformers_version",
        "use_cache",
    )
)
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Address:
    """The content address of a block's KV in one precision.

    Parameters
    ----------
    digest : bytes
        32 bytes.
    level : Level
        PUBLIC or GROUP.

    Raises
    ------
    PrivateSegmentError
        If the level is PRIVATE.
    InvalidInputError
        If the digest does not have 32 bytes.
    """

    digest: bytes
    level: Level

    def __post_init__(self) -> None:
        """Check both."""
        if self.level >= Level.PRIVATE:
            raise PrivateSegmentError("A private segment has no address.")
        if len(self.digest) != _DIGEST_BYTES:
            raise InvalidInputError(
                f"An address has {_DIGEST_BYTES} bytes, got {len(self.digest)}."
            )

    def __str__(self) -> str:
        """Return it in hexadecimal digits, as files are named."""
        return self.digest.hex()


@dataclass(frozen=True)
class ModelIdentity:
    """What of a model the KV of a text depends on.

    Parameters
    ----------
    digest : bytes
        Of the weights and the configuration, 32 bytes.
    dtype : torch.dtype
        That the model computes in.
    layers, heads, key_dim, value_dim : int
        The shape of its KV: ``heads`` are those of keys and values.
    """

    digest: bytes
    dtype: torch.dtype
    layers: int
    heads: int
    key_dim: int
    value_dim: int

    def shape(self, tokens: int) -> KVShape:
        """Return the shape of the KV of so many tokens."""
        return KVShape(
            self.layers, self.heads, tokens, self.key_dim, self.value_dim, self.dtype
        )


def identity_of(model: PreTrainedModel) -> ModelIdentity:
    """Digest a model's weights and configuration, and learn the shape of its KV.

    All weights are read: about a second per gigabyte.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder-only model with the same attention in every layer.

    Returns
    -------
    ModelIdentity
        Equal for models that compute the same KV, whatever they are called.

    Raises
    ------
    InvalidInputError
        If the model has PEFT layers, whose flags its weights do not tell, or its layers
        differ in the shape of their KV.
    """
    _check_adapters(model)
    told = model.config.to_dict()
    named = sorted(
        (str(name), repr(value))
        for name, value in told.items()
        if name not in _INCIDENTAL and not name.startswith(("_", "output_"))
    )
    digest = hashlib.sha256()
    for part in itertools.chain.from_iterable(named):
        digest.update(_prefixed(part.encode()))
    for name, tensor in sorted(model.state_dict().items()):
        kind = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
        digest.update(_prefixed(kind.encode()))
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy())
    shape = kv_shape(model, 1)
    return ModelIdentity(
        digest.digest(),
        shape.dtype,
        shape.layers,
        shape.heads,
        shape.key_dim,
        shape.value_dim,
    )


def _check_adapters(model: PreTrainedModel) -> None:
    """Raise if there are adapters that may be switched while all weights stay."""
    for name, module in model.named_modules():
        origins = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
        if "peft" in origins:
            raise InvalidInputError(
                f"{type(module).__name__} at {name} is a layer of PEFT, which is "
                "switched by flags that weights do not tell: merge the adapter into "
                "the model by merge_and_unload()."
            )


def kv_shape(model: PreTrainedModel, tokens: int) -> KVShape:
    """Return the shape of the KV of so many tokens.

    Raises
    ------
    InvalidInputError
        If the model's layers differ in it.
    """
    keys, values = _kv_of_one_token(model)
    return KVShape(
        len(keys),
        keys[0].shape[1],
        tokens,
        keys[0].shape[-1],
        values[0].shape[-1],
        keys[0].dtype,
    )


@dataclass(frozen=True)
class SharedBlock:
    """A run of tokens whose KV may be asked for, kept and sent.

    Made by :class:`SharedPrefix` only, from public and group segments.

    Parameters
    ----------
    level : Level
        PUBLIC or GROUP.
    begin : int
        The position of its first token in the prompt.
    tokens : tuple[int, ...]
        Its tokens, 1 to :data:`BLOCK_TOKENS`.
    addresses : Mapping[Precision, Address]
        Where its KV is found, in each precision.
    """

    level: Level
    begin: int
    tokens: tuple[int, ...] = field(repr=False)
    addresses: dict[Precision, Address] = field(repr=False, hash=False)

    def __post_init__(self) -> None:
        """Refuse private ones."""
        if self.level >= Level.PRIVATE:
            raise PrivateSegmentError("A private segment has no blocks.")

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.begin + len(self.tokens)


class SharedPrefix:
    """The shared part of a prompt, cut into blocks.

    Parameters
    ----------
    segments : Sequence[Segment]
        Public and group ones, as ``PromptHierarchy.shared`` has them.
    identity : ModelIdentity
        Of the model whose KV it is.
    tenant_key : bytes (default: b"")
        What the server has assigned to the tenant, at least 16 bytes; needed where
        there is a group segment.

    Raises
    ------
    PrivateSegmentError
        If a segment is private.
    InvalidInputError
        If there is a group segment and no key, or a key that is too short, or a public
        segment follows a group one.

    Attributes
    ----------
    segments : tuple[Segment, ...]
        As given.
    blocks : tuple[SharedBlock, ...]
        In their order; a segment's last block is as long as it happens to be.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        identity: ModelIdentity,
        tenant_key: bytes = _PUBLIC_KEY,
    ) -> None:
        self.segments = tuple(segments)
        self.identity = identity
        if any(s.level >= Level.PRIVATE for s in self.segments):
            raise PrivateSegmentError(
                "A private segment cannot be shared: pass PromptHierarchy.shared."
            )
        for index, (above, below) in enumerate(itertools.pairwise(self.segments)):
            if below.level < above.level:
                raise InvalidInputError(
                    f"Segment {index + 1} is public behind a group one: its KV, which "
                    "all may see, would tell of that. Order segments from PUBLIC to "
                    "GROUP."
                )
        if tenant_key and len(tenant_key) < 16:
            raise InvalidInputError(
                f"A tenant's key needs 16 bytes at least, got {len(tenant_key)}."
            )
        if not tenant_key and any(s.level == Level.GROUP for s in self.segments):
            raise InvalidInputError(
                "A group segment is addressed under its tenant's key, and there is "
                "none: give the key that the server has assigned (tenant_key=source."
                "tenant_key()), or make the segment public or private."
            )
        self.blocks = tuple(self._cut(tenant_key))

    def _cut(self, tenant_key: bytes) -> Iterator[SharedBlock]:
        begin = 0
        parents: dict[Precision, bytes] = dict.fromkeys(Precision, b"")
        for segment in self.segments:
            key = tenant_key if segment.level == Level.GROUP else _PUBLIC_KEY
            for start in range(0, len(segment), BLOCK_TOKENS):
                tokens = segment.tokens[start : start + BLOCK_TOKENS]
                packed = struct.pack(f"<{len(tokens)}I", *tokens)
                for precision in Precision:
                    parents[precision] = _digest(
                        key, self.identity, precision, parents[precision], packed
                    )
                yield SharedBlock(
                    segment.level,
                    begin,
                    tokens,
                    {p: Address(d, segment.level) for p, d in parents.items()},
                )
                begin += len(tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens."""
        return tuple(t for s in self.segments for t in s.tokens)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return sum(len(s) for s in self.segments)


def _digest(
    key: bytes,
    identity: ModelIdentity,
    precision: Precision,
    parent: bytes,
    tokens: bytes,
) -> bytes:
    """Return the HMAC that is a block's address."""
    # HMAC fills keys up with zeros: bare, one of zeros would be the public one.
    code = hmac.new(_prefixed(key), digestmod=hashlib.sha256)
    code.update(_prefixed(identity.digest))
    code.update(_prefixed(str(identity.dtype).encode()))
    code.update(_prefixed(precision.value.encode()))
    code.update(_prefixed(parent))
    code.update(_prefixed(tokens))
    return code.digest()


def _prefixed(part: Any) -> bytes:
    """Return bytes behind their length, so that no two sequences of parts are equal."""
    data = bytes(part)
    return len(data).to_bytes(8, "little") + data


@torch.inference_mode()
def _kv_of_one_token(
    model: PreTrainedModel,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the keys and values of a token, per layer of shape [1, heads, 1, dim]."""
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    cache: Any = returned_cache(model(ids, use_cache=True))
    keys = [layer.keys for layer in cache.layers]
    values = [layer.values for layer in cache.layers]
    if len({(k.shape, v.shape) for k, v in zip(keys, values, strict=True)}) != 1:
        raise InvalidInputError(
            f"{type(model).__name__} has layers whose keys and values differ in shape: "
            "choose a model with the same attention in every layer."
        )
    return keys, values
