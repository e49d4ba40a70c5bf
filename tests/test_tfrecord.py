"""TFRecord without TensorFlow: its framing, its CRC and its Examples, and what is wrong with damaged ones."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench.tfrecord import FormatError, crc32c, example, frame, parse_example, records


# RFC 3720, B.4, and the check value of CRC-32C.
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_known_crcs(data, crc):
    assert crc32c(data) == crc


def _by_bit(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=700))
@settings(max_examples=60)
def test_the_crc_is_that_of_one_bit_after_the_other(data):
    assert crc32c(data) == _by_bit(data)


@given(st.lists(st.binary(max_size=300), max_size=5))
@settings(max_examples=40)
def test_records_come_back_with_their_offsets(contents):
    data = b"".join(map(frame, contents))
    read = list(records(data))
    assert [bytes(record) for _, record in read] == contents
    assert all(data[offset:].startswith(frame(record)) for (offset, _), record in zip(read, contents, strict=True))


@given(st.data())
@settings(max_examples=60)
def test_no_flipped_bit_and_no_cut_passes(data):
    whole = frame(b"first") + frame(os.urandom(100)) + frame(b"last")
    starts = {0, len(frame(b"first")), len(whole) - len(frame(b"last"))}
    at = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped = bytearray(whole)
    flipped[at // 8] ^= 1 << at % 8
    with pytest.raises(FormatError) as caught:
        list(records(bytes(flipped)))
    assert caught.value.offset == max(start for start in starts if start <= at // 8)
    cut = data.draw(st.integers(1, len(whole) - 1))
    if cut not in starts:
        with pytest.raises(FormatError, match="cut off"):
            list(records(whole[:cut]))


FEATURES = st.dictionaries(
    st.sampled_from(["a", "image/ä", "", "long" * 50]),
    st.one_of(st.binary(max_size=200), st.integers(-(2**63), 2**63 - 1)),
)


@given(FEATURES)
@settings(max_examples=40)
def test_an_example_comes_back(features):
    parsed = parse_example(example(features))
    assert {k: v if isinstance(v, int) else bytes(v) for k, v in parsed.items()} == features


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_what_is_no_example_is_a_value_error_or_an_example(data):
    try:
        parsed = parse_example(data)
    except ValueError:
        return
    assert isinstance(parsed, dict)


def test_numbers_that_are_not_packed_are_read_too():
    # feature.proto packs them; what other writers make need not be.
    value = b"\x0a" + bytes([len(b"n")]) + b"n" + b"\x12\x04" + b"\x1a\x02" + b"\x08\x07"
    entry = b"\x0a" + bytes([len(value)]) + value
    assert parse_example(b"\x0a" + bytes([len(entry)]) + entry) == {"n": 7}
