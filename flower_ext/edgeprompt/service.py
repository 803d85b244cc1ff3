"""What computes and keeps blocks: which of them, in which precision, of which tenant.

A block is always computed in one pass of its own over the KV of all before it, whatever
happens to be kept: so its bytes are the same whenever and for whomever it is computed,
and a pass is short enough for others to have theirs in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from transformers import PreTrainedModel

from flower_ext.edgeprompt.blocks import (
    Address,
    ModelIdentity,
    SharedBlock,
    SharedPrefix,
    identity_of,
)
from flower_ext.edgeprompt.hierarchy import Level
from flower_ext.edgeprompt.precision import (
    EncodedBlock,
    Precision,
    decode_layer,
    encode,
)
from flower_ext.edgeprompt.prefill import prefill
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.source import Wanted
from flower_ext.errors import InvalidInputError

__all__ = ["BlockStore", "SegmentService"]

_LONGEST = 32_768  # Tokens, of a model that names no limit itself.


class BlockStore(Protocol):
    """Where blocks are kept, as :class:`~flower_ext.edgeprompt.store.KVStore` does."""

    def get(self, address: Address) -> EncodedBlock | None:
        """Return a block, or None if it is not here, or no longer."""
        ...

    def put(self, address: Address, block: EncodedBlock) -> None:
        """Keep a block, as long as there is room."""
        ...


class SegmentService:
    """A model that computes blocks, and the stores that keep them.

    No two tenants ever share a group block: each has a store of its own, in which the
    same address is another entry, and whose room no other tenant can use up. So what
    one tenant is told, and what is computed for it, does not depend on what others
    keep. Public blocks are shared by design: a tenant can tell that somebody has asked
    for a public text before.

    Not for several threads at once.

    Parameters
    ----------
    model : PreTrainedModel
        What computes; it is put into evaluation mode.
    store : BlockStore
        Keeps public blocks.
    tenant_store : Callable[[str], BlockStore] | None (default: None)
        Returns the store of a tenant's group blocks, by the tenant's name; called once
        per tenant. None: ``store`` keeps them too, which serves one tenant alone.
    max_tokens : int | None (default: None)
        The longest shared prefix that is computed, at least 1. None: as long as the
        model takes, or 32768.
    precisions : Sequence[Precision] (default: all)
        Those served, at least one.
    identity : ModelIdentity | None (default: None)
        The model's, if known; None: all weights are read.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Attributes
    ----------
    identity : ModelIdentity
        The model's.
    max_tokens : int
        The longest shared prefix that is computed.
    passes : int
        Blocks computed so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        store: BlockStore,
        *,
        tenant_store: Callable[[str], BlockStore] | None = None,
        max_tokens: int | None = None,
        precisions: Sequence[Precision] = tuple(Precision),
        identity: ModelIdentity | None = None,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise InvalidInputError(f"max_tokens must be at least 1, got {max_tokens}.")
        if not precisions:
            raise InvalidInputError("precisions must have at least one, got none.")
        model.train(False)
        config = model.config.get_text_config(decoder=True)
        limit = getattr(config, "max_position_embeddings", None) or _LONGEST
        self.identity = identity or identity_of(model)
        self.max_tokens = min(max_tokens or limit, limit)
        self.passes = 0
        self._model = model
        self._vocab_size = int(config.vocab_size)
        self._store = store
        self._tenant_store = tenant_store
        self._tenant_stores: dict[str, BlockStore] = {}
        self._precisions = frozenset(precisions)

    def check(self, tokens: int, largest: int) -> None:
        """Raise unless the model takes a text.

        Parameters
        ----------
        tokens : int
            How many it has.
        largest : int
            The largest token id in it.

        Raises
        ------
        InvalidInputError
            If it is too long, or has an id that the model does not know.
        """
        if tokens > self.max_tokens:
            raise InvalidInputError(
                f"The shared part of a prompt may have {self.max_tokens} tokens at "
                f"most, got {tokens}: shorten it, or raise max_tokens if the model "
                "takes more."
            )
        if largest >= self._vocab_size:
            raise InvalidInputError(
                f"Token {largest} is none of the model's {self._vocab_size}: use the "
                "model's own tokenizer."
            )

    def find(self, address: Address, tenant: str = "") -> EncodedBlock | None:
        """Return a block that is kept.

        Parameters
        ----------
        address : Address
            The block's. Of a group block, only what this tenant has is looked at.
        tenant : str (default: "")
            Who asks.

        Returns
        -------
        EncodedBlock | None
            None: it is not here, or no longer.
        """
        store, place = self._place(address, tenant)
        return store.get(place)

    def block(
        self, prefix: SharedPrefix, wanted: Wanted, tenant: str = ""
    ) -> EncodedBlock:
        """Return a block, computed if it is not kept.

        Parameters
        ----------
        prefix : SharedPrefix
            Made with this model's identity.
        wanted : Wanted
            Which block of it.
        tenant : str (default: "")
            Whose it is, if it is a group block.

        Returns
        -------
        EncodedBlock
            In the precision wanted.

        Raises
        ------
        InvalidInputError
            If the prefix is another model's or too long, there is no such block, or the
            precision is not served.
        """
        steps = self.steps(prefix, wanted, tenant)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: EncodedBlock = end.value
                return found

    def steps(
        self, prefix: SharedPrefix, wanted: Wanted, tenant: str = ""
    ) -> Generator[None, None, EncodedBlock]:
        """Compute a block as :meth:`block` does, one pass of the model per step.

        Everything that is computed is kept, so what is left off early is not lost.
        """
        self._check_wanted(prefix, wanted)
        block = prefix.blocks[wanted.block]
        found = self._get(block, wanted.precision, tenant)
        if found is not None:
            return found
        exact = self._get(block, Precision.EXACT, tenant)
        if exact is None:
            exact = yield from self._chain(prefix, wanted.block, tenant)
        if wanted.precision is Precision.EXACT:
            return exact
        part = PrefixKV(exact.shape)
        _decode(exact, part, 0)
        found = encode(
            [keys[0] for keys in part.keys],
            [values[0] for values in part.values],
            wanted.precision,
        )
        self._put(block, wanted.precision, tenant, found)
        return found

    def _chain(
        self, prefix: SharedPrefix, last: int, tenant: str
    ) -> Generator[None, None, EncodedBlock]:
        """Compute or load all blocks up to one, and return that one."""
        device = self._model.device
        chain = PrefixKV(self.identity.shape(prefix.blocks[last].end), device)
        found: EncodedBlock | None = None
        for block in prefix.blocks[: last + 1]:
            found = self._get(block, Precision.EXACT, tenant)
            if found is None:
                before = [chain.head(block.begin)] if block.begin else []
                layers = prefill(self._model, block.tokens, before)
                chain.fill(block.begin, layers)
                found = encode(
                    [keys[0] for keys, _ in layers],
                    [values[0] for _, values in layers],
                    Precision.EXACT,
                )
                self.passes += 1
                self._put(block, Precision.EXACT, tenant, found)
                yield
            else:
                _decode(found, chain, block.begin)
        assert found is not None
        return found

    def _check_wanted(self, prefix: SharedPrefix, wanted: Wanted) -> None:
        """Raise unless a block can be served."""
        if prefix.identity != self.identity:
            raise InvalidInputError(
                "The prefix was made for a model with other weights, another "
                "configuration or another type than the one that computes: make it "
                "with this service's identity."
            )
        if not 0 <= wanted.block < len(prefix.blocks):
            raise InvalidInputError(
                f"Block {wanted.block} is wanted of a prefix that has "
                f"{len(prefix.blocks)}."
            )
        if wanted.precision not in self._precisions:
            served = ", ".join(sorted(p.value for p in self._precisions))
            raise InvalidInputError(
                f"Precision {wanted.precision.value} is not served, but {served}."
            )
        blocks = prefix.blocks[: wanted.block + 1]
        self.check(blocks[-1].end, max(max(block.tokens) for block in blocks))

    def _place(self, address: Address, tenant: str) -> tuple[BlockStore, Address]:
        """Return where a block is kept: in which store, and under which name."""
        if address.level == Level.PUBLIC:
            return self._store, address
        if tenant not in self._tenant_stores:
            if self._tenant_store is not None:
                self._tenant_stores[tenant] = self._tenant_store(tenant)
            elif self._tenant_stores:
                raise InvalidInputError(
                    f"Tenant {tenant!r} is a second one: give tenant_store, so that "
                    "tenants' blocks are kept apart."
                )
            else:
                self._tenant_stores[tenant] = self._store
        # The tenant is part of the name, whoever else may use the same store.
        name = hashlib.sha256(len(tenant).to_bytes(8, "little"))
        name.update(tenant.encode() + address.digest)
        return self._tenant_stores[tenant], Address(name.digest(), address.level)

    def _get(
        self, block: SharedBlock, precision: Precision, tenant: str
    ) -> EncodedBlock | None:
        """Return a block of a prefix, if it is kept."""
        return self.find(block.addresses[precision], tenant)

    def _put(
        self,
        block: SharedBlock,
        precision: Precision,
        tenant: str,
        found: EncodedBlock,
    ) -> None:
        """Keep a block of a prefix."""
        store, place = self._place(block.addresses[precision], tenant)
        store.put(place, found)


def _decode(block: EncodedBlock, into: PrefixKV, begin: int) -> None:
    """Write a block's KV to its place in a longer one."""
    places = slice(begin, begin + block.shape.tokens)
    for index, data in enumerate(block.layers):
        decode_layer(
            data,
            block.shape,
            block.precision,
            into.keys[index][0, :, places],
            into.values[index][0, :, places],
        )
