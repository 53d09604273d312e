"""Reading protocol buffers: what Google's library writes, and what nobody should have written."""

import time
import tracemalloc

import numpy as np
import pytest
from caffe_files import delimited, floating, floats, integer, varint
from hypothesis import given, settings
from hypothesis import strategies as st

from wae.storage import protobuf
from wae.storage.protobuf import Field, Kind, ProtobufError, Schema

INNER = Schema({1: Field("values", Kind.INTEGER), 2: Field("word", Kind.STRING)})
SCHEMA = Schema(
    {
        1: Field("name", Kind.STRING),
        2: Field("size", Kind.INTEGER),
        3: Field("data", Kind.FLOAT),
        4: Field("exact", Kind.DOUBLE),
        5: Field("inner", INNER),
        1000: Field("rare", Kind.FLOAT),
    }
)


def read(data):
    return protobuf.read_binary(data, SCHEMA, "Test")


def joined(message, name):
    return np.concatenate(message.arrays(name))


# ------------------------------------------------------------------------------------------------ binary form


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63)])
def test_integers(value):
    message = read(integer(2, value))
    assert message.integers("size") == [value]
    assert message.integer("size", 5) == value
    assert message.integer("absent", 5) == 5
    packed = delimited(5, delimited(1, varint(value) + varint(7)) + integer(1, 3))
    assert read(packed).message("inner").integers("values") == [value, 7, 3]


@pytest.mark.parametrize("count", [1, 2, 4095, 4096, 4097, 4098, 9000])
@pytest.mark.parametrize("number", [3, 1000], ids=["one-byte tag", "two-byte tag"])
def test_floats_packed_or_not(count, number):
    values = np.random.default_rng(0).normal(size=count).astype(np.float32)
    name = SCHEMA[number].name
    between = integer(2, 9)
    for packed in (True, False):
        message = read(
            between + floats(number, values, packed) + between + floats(number, values, not packed)
        )
        assert np.array_equal(joined(message, name), np.tile(values, 2))
        assert len(message.arrays(name)) == 2
        assert message.integers("size") == [9, 9]


def test_doubles_and_nothing():
    values = np.random.default_rng(0).normal(size=5)
    assert np.array_equal(joined(read(floats(4, values) + floats(4, values[:2], False)), "exact")[:5], values)
    assert len(read(floats(3, np.zeros(0, np.float32))).arrays("data")[0]) == 0
    assert read(b"") == {}
    assert read(b"").message("inner") == {}


def test_fields_without_an_entry_are_skipped():
    others = integer(9, 1) + delimited(9, b"\xff" * 50) + floats(9, np.ones(3), False) + floating(9, 1)
    assert read(others + delimited(1, b"x") + others) == {"name": ["x"]}


def test_floats_cost_no_memory():
    data = floats(3, np.zeros(1_000_000, np.float32))
    unpacked = bytes([3 << 3 | 5, 0, 0, 0, 0]) * 1_000_000
    for bytes_ in (data, unpacked):
        tracemalloc.start()
        message = read(bytes_)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(joined(message, "data")) == 1_000_000
        assert peak < 100_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80", r"byte 0: Test: the data ends within an integer"),
        (integer(2, 1)[:1], r"byte 1: Test.size: the data ends within an integer"),
        (b"\x10" + b"\xff" * 10, r"byte 1: Test.size: an integer has more than 64 bits"),
        (b"\x10" + b"\x80" * 9 + b"\x02", r"an integer has more than 64 bits"),
        (b"\x0a\x05abc", r"byte 0: Test.name: it says that it has 5 bytes, but 3 are left"),
        (b"\x0a" + varint(2**63), r"it says that it has 9223372036854775808 bytes, but 0 are left"),
        (
            delimited(5, b"\x0a\x05"),
            r"byte 2: Test.inner.values: it says that it has 5 bytes, but 0 are left",
        ),
        (delimited(3, b"12345"), r"byte 2: Test.data: 5 bytes are no whole number of floats"),
        (delimited(4, b"1234"), r"Test.exact: 4 bytes are no whole number of doubles"),
        (b"\x1d\0\0\0", r"byte 0: Test.data: 4 bytes are needed, but 3 are left"),
        (b"\x25\0\0\0\0", r"byte 0: Test.exact: the wire type does not fit, got 5"),
        (integer(1, 3), r"byte 0: Test.name: the wire type does not fit, got 0"),
        (integer(5, 3), r"byte 0: Test.inner: the wire type does not fit, got 0"),
        (b"\x03", r"byte 0: Test.0: unknown wire type 3|a field has the number 0"),
        (b"\x4b\x4c", r"byte 0: Test.9: unknown wire type 3"),
        (b"\x4e", r"byte 0: Test.9: unknown wire type 6"),
        (integer(0, 1), r"byte 0: Test: a field has the number 0"),
        (delimited(1, b"x" * 1001), r"byte 3: Test.name: a string of 1001 bytes"),
    ],
)
def test_malformed_bytes(data, message):
    with pytest.raises(ProtobufError, match=message):
        read(data)


@pytest.mark.parametrize(
    "field",
    [delimited(3, b""), integer(99, 0), delimited(5, b""), floating(3, 1) + integer(9, 0)],
    ids=["no floats", "unknown", "empty messages", "short rows"],
)
def test_many_small_fields_end_early(field):
    data = field * (1_000_000 // len(field))
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ProtobufError, match="more than 50000 fields"):
        read(data)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000
    assert seconds < 10


def test_packed_integers_count_as_fields():
    with pytest.raises(ProtobufError, match="more than 50000 fields"):
        read(delimited(5, delimited(1, b"\0" * 1_000_000)))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes(data):
    try:
        message = read(data)
    except ProtobufError:
        return
    assert all(message.values())


# -------------------------------------------------------------------------------------------------- text form


def test_text_in_all_its_forms():
    message = protobuf.read_text(
        """# a comment
        name: "a" 'b'   # joined
        size: -0x1F size: 017, size: 12; size: [1, 2]
        number: 1.5e-3 half: .5f minus: -2
        on: true off: false
        inner { word: MAX inner: < word: "}" > }
        inner: { }
        """
    )
    assert message.string("name") == "ab"
    assert message.integers("size") == [-31, 15, 12, 1, 2]
    assert [message.number(name, 0) for name in ("number", "half", "minus", "none")] == [0.0015, 0.5, -2, 0]
    assert message.flag("on", False)
    assert not message.flag("off", True)
    first, second = message.messages("inner")
    assert first.string("word") == "MAX"
    assert first.message("inner").string("word") == "}"
    assert second == {}
    assert first.where == "line 6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name", r"line 1: needed a colon after name, got 'the end of the file'"),
        ("\na { b: 1", r"line 2: needed a field's name or }, got 'the end of the file'"),
        ("a { b: 1 >", r"line 1: needed a field's name or }, got '>'"),
        ("}", r"line 1: needed a field's name, got '}'"),
        ("a: ", r"line 1: needed a value"),
        ("a: }", r"line 1: needed a value, got '}'"),
        ('a: "x', r"line 1: cannot read '\"x'"),
        ('a: "x\ny"', r"line 1: cannot read"),
        ("a: 09", r"line 1: 09 is no octal number"),
        ("a: " + "9" * 65, r"line 1: a number of 65 characters"),
        ("a: " + "9" * 100_000, r"line 1: '9+'... has more than 1000 characters"),
        ("a: [1 2]", r"line 1: needed a comma or \]"),
        ("a: [", r"line 1: needed a value"),
        ("a {" * 33, r"line 1: more than 32 messages within each other"),
        ("a {" * 300_000, r"more than 32 messages"),
        ("[x.y]: 1", r"line 1: needed a field's name"),
        ("a: $", r"line 1: cannot read '\$'"),
    ],
    ids=range(17),
)
def test_malformed_text(text, message):
    with pytest.raises(ProtobufError, match=message):
        protobuf.read_text(text)


@pytest.mark.parametrize(
    ("read_field", "message"),
    [
        (lambda m: m.string("number"), "line 1: number must be a string"),
        (lambda m: m.integer("word", 0), "line 1: word must be an integer"),
        (lambda m: m.integer("number", 0), "line 1: number may be given once, got 2 values"),
        (lambda m: m.number("word", 0), "line 1: word must be a number"),
        (lambda m: m.flag("word", True), "line 1: word must be true or false"),
        (lambda m: m.messages("word"), "line 1: word must be a message"),
        (lambda m: m.strings("inner"), "line 1: inner must be a string"),
    ],
)
def test_values_of_another_kind(read_field, message):
    text = protobuf.read_text("number: 1 number: 2 word: MAX inner {}")
    with pytest.raises(ProtobufError, match=message):
        read_field(text)


@settings(max_examples=200)
@given(st.text(alphabet="ab01.:-{}<>[],;#\"'\\\n \0é", max_size=80))
def test_any_text(text):
    try:
        message = protobuf.read_text(text)
    except ProtobufError:
        return
    assert all(message.values())


# ----------------------------------------------------------------------------------- against Google's library


@pytest.fixture(scope="module")
def google_class():
    """A message class of Google's library with the fields of SCHEMA."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="test.proto", package="test", syntax="proto2")
    kinds = {Kind.STRING: 9, Kind.INTEGER: 3, Kind.FLOAT: 2, Kind.DOUBLE: 1}
    for name, schema in (("Inner", INNER), ("Test", SCHEMA)):
        message = file.message_type.add(name=name)
        for number, field in schema.items():
            added = message.field.add(name=field.name, number=number, label=3)
            if isinstance(field.kind, Schema):
                added.type, added.type_name = 11, ".test.Inner"
            else:
                added.type = kinds[field.kind]
                added.options.packed = number in (1, 3) and field.kind is not Kind.STRING
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Test"))


_PLAIN = st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\\"'")
_INT64 = st.integers(-(2**63), 2**63 - 1)
_FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=5)


@given(
    names=st.lists(st.text(_PLAIN, max_size=9), max_size=2),
    sizes=st.lists(_INT64, max_size=4),
    data=_FLOATS,
    exact=st.lists(st.floats(allow_nan=False), max_size=5),
    rare=_FLOATS,
    inner=st.lists(st.lists(_INT64, max_size=3), max_size=3),
)
def test_reads_what_google_s_library_writes(google_class, names, sizes, data, exact, rare, inner):
    from google.protobuf import text_format

    written = google_class(name=names, size=sizes, data=data, exact=exact, rare=rare)
    for values in inner:
        written.inner.add(values=values, word=["w"])
    message = read(written.SerializeToString())
    assert message.strings("name") == names
    assert message.integers("size") == sizes
    for name, values in (("data", data), ("exact", exact), ("rare", rare)):
        assert list(np.concatenate([*message.arrays(name), []])) == values
    assert [part.integers("values") for part in message.messages("inner")] == inner

    text = protobuf.read_text(text_format.MessageToString(written))
    assert text.strings("name") == names
    assert text.integers("size") == sizes
    assert [part.integers("values") for part in text.messages("inner")] == inner
