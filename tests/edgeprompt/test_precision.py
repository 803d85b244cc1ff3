"""What is written down is as large as told, and comes back as near as it should."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_ext.edgeprompt.precision import (
    FINEST_FIRST,
    EncodedBlock,
    KVShape,
    Precision,
    decode_layer,
    encode,
    layer_nbytes,
    relative_error,
)
from flower_ext.edgeprompt.quantise import GROUP, quantise, quantise_groups
from flower_ext.errors import InvalidInputError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
EPS = {Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}


def kv(
    tokens: int = 48,
    key_dim: int = 16,
    value_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    seed: int = 0,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Random keys with channels far from zero, as a model's are, and values."""
    source = torch.Generator().manual_seed(seed)
    keys, values = [], []
    for _ in range(layers):
        offset = torch.randn(3, 1, key_dim, generator=source) * 4
        key = torch.randn(3, tokens, key_dim, generator=source) + offset
        keys.append(key.to(dtype))
        values.append(torch.randn(3, tokens, value_dim, generator=source).to(dtype))
    return keys, values


def decoded(block: EncodedBlock) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    shape = block.shape
    keys, values = [], []
    for data in block.layers:
        key = torch.full(
            (shape.heads, shape.tokens, shape.key_dim), math.nan, dtype=shape.dtype
        )
        value = torch.full(
            (shape.heads, shape.tokens, shape.value_dim), math.nan, dtype=shape.dtype
        )
        decode_layer(data, shape, block.precision, key, value)
        keys.append(key)
        values.append(value)
    return keys, values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", Precision)
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 70), key_dim=st.integers(1, 70), value_dim=st.integers(1, 70)
)
def test_any_shape_has_the_size_foretold_and_comes_back(
    tokens: int, key_dim: int, value_dim: int, dtype: torch.dtype, precision: Precision
) -> None:
    keys, values = kv(tokens, key_dim, value_dim, dtype)

    block = encode(keys, values, precision)

    assert block.shape == KVShape(2, 3, tokens, key_dim, value_dim, dtype)
    assert [len(x) for x in block.layers] == [layer_nbytes(block.shape, precision)] * 2
    errors = []
    for computed, back in zip((keys, values), decoded(block), strict=True):
        for a, b in zip(computed, back, strict=True):
            assert torch.isfinite(b).all()
            errors.append(relative_error(b, a))
    assert block.error == max(errors)
    if precision == Precision.EXACT:
        assert block.error == 0
    elif precision in EPS:
        assert block.error <= EPS[precision]
    else:  # Half a step of 254, or of 15, of at most six deviations.
        assert block.error < (0.02 if precision == Precision.INT8 else 0.2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_number_is_off_by_more_than_half_its_scale(dtype: torch.dtype) -> None:
    x = kv(70, 40, dtype=dtype)[0][0]
    rounding = torch.finfo(dtype).eps * x.abs().double()
    for precision in (Precision.INT8, Precision.INT4):
        keys, values = decoded(encode([x], [x], precision))
        for back, dim in ((keys[0], 1), (values[0], 2)):
            if precision == Precision.INT8:
                scale = quantise(x, dim)[1].double().expand(x.shape)
            else:
                scales = quantise_groups(x, dim)[0].double().squeeze(dim + 1)
                scale = scales.repeat_interleave(GROUP, dim).narrow(
                    dim, 0, x.shape[dim]
                )
            off = (back.double() - x.double()).abs()
            assert (off <= scale / 2 * (1 + 1e-5) + rounding).all()
            # And the scale is no larger than it needs to be.
            span = x.double().amax(dim) - x.double().amin(dim)
            span = span if precision == Precision.INT4 else 2 * x.double().abs().amax()
            steps = 15 if precision == Precision.INT4 else 254
            assert scale.amax() <= (span.amax() / steps) * 1.06 + 0.02


@pytest.mark.parametrize("offset", [100.3, -100.2])
def test_a_narrow_band_far_from_zero_is_spanned_by_its_scale(offset: float) -> None:
    # Zeros are rounded, by up to 0.5 here: none may come to lie above the band.
    x = torch.linspace(offset, offset + 0.4, 32).reshape(1, 32, 1)
    (key,), _ = decoded(encode([x], [x], Precision.INT4))
    assert (key - x).abs().max() <= 0.91 / 15 / 2


def test_the_layout_is_what_it_is() -> None:
    # Two tokens of one head: keys of channels (1, -127) and (0, 0), values ±127 · 2.
    keys = torch.tensor([[[1.0, 0.0], [-127.0, 0.0]]])
    values = torch.tensor([[[254.0, 2.0], [-254.0, -4.0]]])

    block = encode([keys], [values], Precision.INT8)

    one, none, two = [0x80, 0x3F], [0, 0], [0, 0x40]  # bfloat16, little-endian.
    assert block.layers[0].tolist() == [
        *(*one, *none),
        *(*two, *two),
        *(1, 0, 256 - 127, 0),
        *(127, 1, 256 - 127, 256 - 2),
    ]
    assert block.error == 0

    keys = torch.tensor([[[0.0, 5.0], [15.0, 5.0], [3.0, 5.0]]])
    block = encode([keys], [keys], Precision.INT4)
    five = [0xA0, 0x40]
    assert block.layers[0].tolist()[:8] == [*one, *none, *none, *five]
    # Tokens 0 and 2 share bytes, then token 1 has some for itself.
    assert block.layers[0].tolist()[8 + 12 : 8 + 12 + 4] == [0x30, 0, 0x0F, 0]


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decodes_into_slices_and_touches_nothing_else(
    precision: Precision, dtype: torch.dtype
) -> None:
    keys, values = kv(37, 34, 33, dtype, layers=1)
    block = encode(keys, values, precision)
    whole = decoded(block)
    room = [torch.full((3, 100, dim), 7.0, dtype=dtype) for dim in (34, 33)]

    decode_layer(
        block.layers[0],
        block.shape,
        precision,
        room[0][:, 20:57],
        room[1][:, 20:57],
    )

    for buffer, (expected,) in zip(room, whole, strict=True):
        assert torch.equal(buffer[:, 20:57], expected)
        assert (buffer[:, :20] == 7).all()
        assert (buffer[:, 57:] == 7).all()


@pytest.mark.parametrize("precision", Precision)
def test_decodes_bytes_wherever_they_begin(precision: Precision) -> None:
    keys, values = kv(7, 5, 3, layers=1)
    block = encode(keys, values, precision)
    expected = decoded(block)
    for offset in range(1, 9):
        shifted = torch.zeros(offset + len(block.layers[0]), dtype=torch.uint8)
        shifted[offset:] = block.layers[0]
        buffer = bytearray(shifted.numpy().tobytes())
        for data in (
            shifted[offset:],
            torch.frombuffer(buffer, dtype=torch.uint8, offset=offset),
        ):
            moved = EncodedBlock(block.shape, precision, block.error, (data,))
            for a, b in zip(decoded(moved), expected, strict=True):
                assert torch.equal(a[0], b[0])


@pytest.mark.parametrize("precision", Precision)
def test_decodes_into_what_inference_mode_made(precision: Precision) -> None:
    keys, values = kv(layers=1)
    block = encode(keys, values, precision)
    with torch.inference_mode():
        made = torch.empty_like(keys[0]), torch.empty_like(values[0])
    decode_layer(block.layers[0], block.shape, precision, *made)
    assert torch.equal(made[0], decoded(block)[0][0])


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [0.0, 1.5, -100.0, 1e-4])
def test_constant_numbers_come_back(
    precision: Precision, dtype: torch.dtype, constant: float
) -> None:
    x = torch.full((2, 5, 6), constant, dtype=dtype)
    block = encode([x], [x], precision)
    for (back,) in decoded(block):
        assert relative_error(back, x) <= 2.0**-8
    assert block.error <= 2.0**-8
    if constant == 0:
        assert block.error == 0


@pytest.mark.parametrize("precision", Precision)
def test_a_zero_channel_costs_the_others_nothing(precision: Precision) -> None:
    keys, values = kv(layers=1)
    keys[0][:, :, 3] = 0
    values[0][:, 5] = 0
    (key,), (value,) = decoded(encode(keys, values, precision))
    assert (key[:, :, 3] == 0).all()
    assert (value[:, 5] == 0).all()
    assert relative_error(key, keys[0]) < 0.2


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_stay_finite(
    precision: Precision, dtype: torch.dtype
) -> None:
    largest = torch.finfo(dtype).max
    rows = [[largest, -largest], [-largest, largest], [1.0, largest / 3]]
    x = torch.tensor([rows], dtype=dtype)
    block = encode([x], [x], precision)
    for (back,) in decoded(block):
        assert torch.isfinite(back).all()
    assert math.isfinite(block.error)
    if precision == Precision.FP16 and dtype != torch.float16:
        assert block.error > 0.9  # Clamped, and it says so.


def test_float32_beyond_float16_is_clamped_and_told() -> None:
    x = torch.tensor([[[70000.0, 1.0]]])
    block = encode([x], [x], Precision.FP16)
    (key,), _ = decoded(block)
    assert key.tolist() == [[[65504.0, 1.0]]]
    assert block.error == pytest.approx((70000 - 65504) / 70000)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(precision: Precision, bad: float) -> None:
    for which in (0, 1):
        pair = kv()
        pair[which][1][2, 3, 4] = bad
        with pytest.raises(InvalidInputError, match=r"Layer 1 .* not finite"):
            encode(*pair, precision)


def test_finer_costs_more_and_errs_less() -> None:
    assert set(FINEST_FIRST) == set(Precision)
    blocks = [encode(*kv(256, 64, 64), p) for p in FINEST_FIRST]
    errors = [b.error for b in blocks]
    sizes = [b.nbytes for b in blocks]
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)
    exact = sizes[0]
    assert [round(exact / s, 2) for s in sizes] == [1.0, 2.0, 2.0, 3.92, 6.4]


def test_shares_no_memory_with_its_input() -> None:
    keys, values = kv()
    for precision in Precision:
        block = encode(keys, values, precision)
        before = [x.clone() for x in block.layers]
        keys[0] += 1
        values[1] *= 2
        assert all(torch.equal(a, b) for a, b in zip(block.layers, before, strict=True))


def test_takes_views_and_what_needs_gradients() -> None:
    keys, values = kv()
    views = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in keys]
    assert not views[0].is_contiguous()
    for precision in Precision:
        a = encode(views, [v.clone().requires_grad_() for v in values], precision)
        b = encode(keys, values, precision)
        assert all(torch.equal(x, y) for x, y in zip(a.layers, b.layers, strict=True))
        assert not a.layers[0].requires_grad


def test_bad_input_is_named() -> None:
    keys, values = kv()
    with pytest.raises(InvalidInputError, match="got 2 and 1"):
        encode(keys, values[:1], Precision.EXACT)
    with pytest.raises(InvalidInputError, match="got 0 and 0"):
        encode([], [], Precision.EXACT)
    with pytest.raises(InvalidInputError, match=r"got \[3, 47, 16\]"):
        encode(keys, [values[0], values[1][:, 1:]], Precision.EXACT)
    with pytest.raises(InvalidInputError, match=r"got \[3, 48, 15\]"):
        encode([keys[0], keys[1][:, :, 1:]], values, Precision.EXACT)
    with pytest.raises(InvalidInputError, match=r"torch\.float16, where"):
        encode(keys, [values[0], values[1].half()], Precision.EXACT)
    with pytest.raises(InvalidInputError, match="tokens must be at least 1, got 0"):
        KVShape(1, 1, 0, 1, 1, torch.float32)
    with pytest.raises(InvalidInputError, match=r"floating-point, got torch\.int8"):
        KVShape(1, 1, 1, 1, 1, torch.int8)

    block = encode(keys, values, Precision.INT8)
    room = torch.empty(3, 48, 16)
    with pytest.raises(InvalidInputError, match="uint8 of shape"):
        decode_layer(block.layers[0][:-1], block.shape, block.precision, room, room)
    with pytest.raises(InvalidInputError, match=r"got torch\.float32 of shape \[3, 47"):
        decode_layer(block.layers[0], block.shape, block.precision, room, room[:, 1:])
    with pytest.raises(InvalidInputError, match=r"got torch\.float16"):
        decode_layer(block.layers[0], block.shape, block.precision, room.half(), room)


def test_relative_error_by_hand() -> None:
    computed = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 0.0]), computed) == pytest.approx(0.8)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf
    huge = torch.tensor([3e38, 0.0])
    assert relative_error(huge / 2, huge) == 0.5
