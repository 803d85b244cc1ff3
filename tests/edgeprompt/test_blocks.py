"""A block's address: equal for equal, different for all else, none for the private."""

from __future__ import annotations

import copy
import hashlib
import hmac
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from flower_ext.edgeprompt.blocks import (
    BLOCK_TOKENS,
    Address,
    ModelIdentity,
    SharedBlock,
    SharedPrefix,
    identity_of,
)
from flower_ext.edgeprompt.errors import PrivateSegmentError
from flower_ext.edgeprompt.hierarchy import Level, PromptHierarchy, Segment
from flower_ext.edgeprompt.precision import KVShape, Precision
from flower_ext.errors import InvalidInputError

PUBLIC, GROUP, PRIVATE = Level
KEY = bytes(range(16))
IDENTITY = ModelIdentity(bytes(32), torch.float32, 2, 2, 4, 4)


def llama(**other: Any) -> LlamaForCausalLM:
    sizes: dict[str, Any] = {
        "vocab_size": 11,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **other}))


def addresses(
    *segments: Segment,
    identity: ModelIdentity = IDENTITY,
    key: bytes = KEY,
    precision: Precision = Precision.EXACT,
) -> list[bytes]:
    prefix = SharedPrefix(segments, identity, key)
    return [block.addresses[precision].digest for block in prefix.blocks]


PUBLIC_SEGMENT = Segment([1, 2, 3], PUBLIC)
GROUP_SEGMENT = Segment([4, 5], GROUP)


def test_equal_prefixes_have_equal_addresses() -> None:
    copied = replace(IDENTITY, digest=bytes(bytearray(32)))

    assert addresses(PUBLIC_SEGMENT, GROUP_SEGMENT) == addresses(
        Segment((1, 2, 3), PUBLIC), Segment([4, 5], GROUP), identity=copied
    )


@pytest.mark.parametrize("segment", [PUBLIC_SEGMENT, GROUP_SEGMENT])
def test_an_address_names_weights_dtype_precision_and_tokens(segment: Segment) -> None:
    found = [
        addresses(segment),
        addresses(segment, identity=replace(IDENTITY, digest=b"\1" * 32)),
        addresses(segment, identity=replace(IDENTITY, dtype=torch.bfloat16)),
        addresses(segment, identity=replace(IDENTITY, dtype=torch.float16)),
        addresses(Segment(segment.tokens[::-1], segment.level)),
        addresses(Segment(segment.tokens[:-1], segment.level)),
        addresses(Segment([*segment.tokens, 0], segment.level)),
        *(addresses(segment, precision=p) for p in Precision if p.value != "exact"),
    ]

    assert len({digest for digests in found for digest in digests}) == len(found)


def test_an_address_names_what_is_before_it() -> None:
    (first, second) = addresses(PUBLIC_SEGMENT, Segment([4, 5], PUBLIC))

    assert addresses(PUBLIC_SEGMENT) == [first]
    assert addresses(Segment([4, 5], PUBLIC)) != [second]
    assert addresses(Segment([1, 2], PUBLIC), Segment([4, 5], PUBLIC))[1] != second
    # The same tokens in other blocks: their KV is cut elsewhere.
    assert second not in addresses(Segment([1, 2, 3, 4, 5], PUBLIC))
    assert second not in addresses(Segment([1], PUBLIC), Segment([2, 3, 4, 5], PUBLIC))


def test_a_tenant_has_addresses_of_its_own_below_the_public_ones() -> None:
    other = bytes(16)
    mine = addresses(PUBLIC_SEGMENT, GROUP_SEGMENT)
    theirs = addresses(PUBLIC_SEGMENT, GROUP_SEGMENT, key=other)

    assert mine[0] == theirs[0] == addresses(PUBLIC_SEGMENT, key=b"")[0]
    assert mine[1] != theirs[1]


def test_no_tenants_key_makes_the_addresses_of_another_key() -> None:
    found = [
        addresses(Segment([1, 2], PUBLIC)),
        *(
            addresses(Segment([1, 2], GROUP), key=key)
            # HMAC fills up with zeros, and digests what is longer than its block.
            for key in (KEY, KEY + b"\0", bytes(16), bytes(17), bytes(64))
        ),
        addresses(Segment([1, 2], GROUP), key=b"k" * 65),
        addresses(Segment([1, 2], GROUP), key=hashlib.sha256(b"k" * 65).digest()),
    ]

    assert len({digest for (digest,) in found}) == len(found)


def test_an_address_is_the_hmac_of_its_parts_behind_their_lengths() -> None:
    def prefixed(part: bytes) -> bytes:
        return len(part).to_bytes(8, "little") + part

    parent = b""
    for segment, key, found in zip(
        (PUBLIC_SEGMENT, GROUP_SEGMENT),
        (b"", KEY),
        addresses(PUBLIC_SEGMENT, GROUP_SEGMENT, precision=Precision.INT8),
        strict=True,
    ):
        tokens = b"".join(t.to_bytes(4, "little") for t in segment.tokens)
        parts = (bytes(32), b"torch.float32", b"int8", parent, tokens)
        parent = hmac.digest(prefixed(key), b"".join(map(prefixed, parts)), "sha256")
        assert found == parent


@given(
    one=st.lists(st.integers(0, 2**17), min_size=1, max_size=6),
    other=st.lists(st.integers(0, 2**17), min_size=1, max_size=6),
)
def test_only_equal_runs_of_tokens_have_equal_addresses(
    one: list[int], other: list[int]
) -> None:
    same = addresses(Segment(one, PUBLIC)) == addresses(Segment(other, PUBLIC))

    assert same == (one == other)
    if len(one) > 1:
        cut = addresses(Segment(one[:1], PUBLIC), Segment(one[1:], PUBLIC))
        assert not set(cut) & set(addresses(Segment(one, PUBLIC)))


def test_the_address_before_a_block_cannot_be_passed_off_as_tokens() -> None:
    first, second = addresses(PUBLIC_SEGMENT, Segment([4, 5], PUBLIC))
    # Without lengths, that address and these tokens would be the same bytes.
    tokens = [int.from_bytes(first[i : i + 4], "little") for i in range(0, 32, 4)]

    assert addresses(Segment([*tokens, 4, 5], PUBLIC)) != [second]


# Blocks.


def test_segments_are_cut_into_blocks_and_none_has_two_segments() -> None:
    long = Segment([i % 7 for i in range(BLOCK_TOKENS + 1)], PUBLIC)
    prefix = SharedPrefix([long, GROUP_SEGMENT], IDENTITY, KEY)

    assert [(b.level, b.begin, b.end) for b in prefix.blocks] == [
        (PUBLIC, 0, 256),
        (PUBLIC, 256, 257),
        (GROUP, 257, 259),
    ]
    assert tuple(t for b in prefix.blocks for t in b.tokens) == prefix.tokens
    assert prefix.tokens == long.tokens + GROUP_SEGMENT.tokens
    assert len(prefix) == 259
    assert all(
        a.level == b.level and set(b.addresses) == set(Precision)
        for b in prefix.blocks
        for a in b.addresses.values()
    )


def test_a_longer_prompt_keeps_the_blocks_that_are_full() -> None:
    tokens = [i % 7 for i in range(2 * BLOCK_TOKENS + 9)]

    one = addresses(Segment(tokens, PUBLIC))
    other = addresses(Segment([*tokens, 3], PUBLIC))

    assert one[:2] == other[:2]
    assert one[2] != other[2]


def test_a_block_does_not_show_its_tokens() -> None:
    (block,) = SharedPrefix([Segment([70707], GROUP)], IDENTITY, KEY).blocks

    assert "70707" not in repr(block)


# What is private.


def test_a_private_segment_is_refused_wherever_it_is_put() -> None:
    private = Segment([6], PRIVATE)
    prompt = PromptHierarchy([PUBLIC_SEGMENT, GROUP_SEGMENT, private])

    for segments in ([private], prompt.segments, [private, PUBLIC_SEGMENT]):
        with pytest.raises(PrivateSegmentError, match=r"pass PromptHierarchy\.shared"):
            SharedPrefix(segments, IDENTITY, KEY)
    assert len(SharedPrefix(prompt.shared, IDENTITY, KEY)) == 5


def test_nothing_private_has_a_block_or_an_address() -> None:
    (block,) = SharedPrefix([PUBLIC_SEGMENT], IDENTITY).blocks

    with pytest.raises(PrivateSegmentError, match="no blocks"):
        SharedBlock(PRIVATE, 0, (6,), block.addresses)
    with pytest.raises(PrivateSegmentError, match="no blocks"):
        replace(block, level=PRIVATE)
    with pytest.raises(PrivateSegmentError, match="no address"):
        Address(bytes(32), PRIVATE)
    with pytest.raises(PrivateSegmentError, match="no address"):
        replace(block.addresses[Precision.EXACT], level=PRIVATE)


def test_a_public_segment_does_not_depend_on_a_group() -> None:
    with pytest.raises(InvalidInputError, match="Segment 1 is public behind a group"):
        SharedPrefix([GROUP_SEGMENT, PUBLIC_SEGMENT], IDENTITY, KEY)


@pytest.mark.parametrize("segments", [[PUBLIC_SEGMENT], [GROUP_SEGMENT]])
def test_short_keys_are_refused(segments: list[Segment]) -> None:
    with pytest.raises(InvalidInputError, match="16 bytes at least, got 15"):
        SharedPrefix(segments, IDENTITY, bytes(15))


def test_a_group_needs_a_key_and_what_is_public_does_not() -> None:
    with pytest.raises(InvalidInputError, match="there is none"):
        SharedPrefix([PUBLIC_SEGMENT, GROUP_SEGMENT], IDENTITY)
    assert len(SharedPrefix([PUBLIC_SEGMENT], IDENTITY).blocks) == 1


@pytest.mark.parametrize("size", [0, 31, 33])
def test_an_address_has_32_bytes(size: int) -> None:
    with pytest.raises(InvalidInputError, match=f"32 bytes, got {size}"):
        Address(bytes(size), PUBLIC)


def test_an_address_is_written_in_hexadecimal_digits() -> None:
    assert str(Address(b"\xab" * 32, PUBLIC)) == "ab" * 32


# Models.


def test_the_same_weights_under_another_name_are_the_same_model(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "another")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "another")

    assert loaded.config._name_or_path != model.config._name_or_path
    assert identity_of(loaded) == identity_of(model)


def test_other_weights_under_the_same_name_are_another_model() -> None:
    model = llama()
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name)[-1, -1] += 1e-3

        assert other.config.to_dict() == model.config.to_dict()
        assert identity_of(other).digest != identity_of(model).digest


def test_weights_that_are_swapped_are_another_model() -> None:
    model, other = llama(), llama()
    layer = other.model.layers[0].mlp
    layer.up_proj, layer.gate_proj = layer.gate_proj, layer.up_proj

    assert identity_of(other).digest != identity_of(model).digest


@pytest.mark.parametrize(
    "changed", [{"rms_norm_eps": 1e-4}, {"rope_parameters": {"rope_theta": 5e5}}]
)
def test_another_configuration_is_another_model(changed: dict[str, Any]) -> None:
    other = llama(**changed)

    assert all(
        torch.equal(a, b)
        for a, b in zip(llama().parameters(), other.parameters(), strict=True)
    )
    assert identity_of(other).digest != identity_of(llama()).digest


def test_a_models_dtype_and_shape_are_read_from_its_kv() -> None:
    model = llama()
    model.bfloat16()
    half = identity_of(model)

    assert half.shape(5) == KVShape(2, 2, 5, 4, 4, torch.bfloat16)
    assert half.digest != identity_of(llama()).digest
