"""wae.storage.caffe_proto: Caffe's messages as text and in binary form, and malformed ones."""

import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest
from caffe_files import blob, delimited, floating, floats, integer, layer, varint
from hypothesis import given, settings
from hypothesis import strategies as st

from wae.storage.caffe_proto import ProtoError, read_blob, read_layers, read_shape, read_text, word

# -------------------------------------------------------------------------------------------------- text form


def only_layer(text, **encoding):
    return read_text(text.encode(**encoding)).layer[0]


def test_every_form_of_text_is_read():
    read = only_layer(
        """# a comment
        layer { name: "a" 'b'   # joined
        convolution_param { num_output: 0x1F pad: 017 stride: [1, 2]; bias_term: false kernel_h: +3, }
        batch_norm_param: < eps: 1.5e-3f >
        type: "\\103\\x6fncat" }
        """
    )
    convolution = read.convolution_param
    assert (read.name, read.type) == (b"ab", b"Concat")
    assert (convolution.num_output, list(convolution.pad), list(convolution.stride)) == (31, [15], [1, 2])
    assert (convolution.kernel_h, convolution.bias_term) == (3, False)
    assert read.batch_norm_param.eps == pytest.approx(0.0015)
    assert (convolution.group, read.pooling_param.HasField("pool")) == (1, False)


@pytest.mark.parametrize("number", [0, 1])
def test_an_enum_is_a_word_or_a_number(number):
    words = ("TRAIN", "TEST"), ("MAX", "AVE")
    for phase, pool in ((number, number), (words[0][number], words[1][number])):
        read = only_layer(f"layer {{ include {{ phase: {phase} }} pooling_param {{ pool: {pool} }} }}")
        assert word(read.include[0], "phase") == words[0][number]
        assert word(read.pooling_param, "pool") == words[1][number]


def test_older_layers_have_an_enum_as_their_type():
    read = read_text(b'layers { name: "a" type: INNER_PRODUCT } layers { type: 4 } layers { }').layers
    assert [word(layer, "type") for layer in read] == ["INNER_PRODUCT", "CONVOLUTION", "NONE"]


@pytest.mark.parametrize(
    ("number", "name"),
    {4: "CONVOLUTION", 14: "INNER_PRODUCT", 17: "POOLING", 18: "RELU", 3: "CONCAT", 25: "ELTWISE",
     22: "SPLIT", 6: "DROPOUT", 5: "DATA", 12: "IMAGE_DATA", 24: "WINDOW_DATA"}.items(),
)  # fmt: skip
def test_older_types_have_caffe_s_numbers(number, name):
    """They are those of the layers that the importer knows."""
    assert word(read_text(b"layers { type: %d }" % number).layers[0], "type") == name


def test_defaults_are_those_of_caffe():
    read = only_layer("layer { }")
    convolution, product = read.convolution_param, read.inner_product_param
    assert (convolution.bias_term, convolution.group, convolution.axis) == (True, 1, 1)
    assert (product.bias_term, product.axis, product.transpose) == (True, 1, False)
    assert (read.batch_norm_param.use_global_stats, read.batch_norm_param.eps) == (True, pytest.approx(1e-5))
    assert (word(read.pooling_param, "pool"), word(read.pooling_param, "round_mode")) == ("MAX", "CEIL")
    assert (read.pooling_param.ceil_mode, read.concat_param.concat_dim) == (True, 1)
    assert word(read.eltwise_param, "operation") == "SUM"
    assert (read.transform_param.scale, read.relu_param.negative_slope) == (1, 0)


def test_unknown_fields_are_skipped():
    read = only_layer(
        'layer { param { lr_mult: +2 decay_mult: -1 } name: "a" blobs_lr: [1, 2] phase: TEST '
        'python_param { module: "x\\"y" inner < a: b > } loss_weight: 1e-3 include { not_stage: "s" } }'
    )
    assert read.name == b"a"


def test_text_that_is_valid_utf_8_and_gbk_is_read_as_utf_8():
    text = 'layer { name: "数据" }'.encode()
    assert text.decode("gbk")
    assert read_text(text).layer[0].name.decode() == "数据"


def test_big_endian_utf_16_is_read():
    read = read_text(b"\xfe\xff" + 'layer { name: "数" }'.encode("utf-16-be"))
    assert read.layer[0].name.decode() == "数"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_encodings_are_detected(encoding):
    text = '# 训练\nlayer { name: "a" data_param { source: "数据\\\\" } top: "数" }'
    read = only_layer(text, encoding=encoding)
    assert (read.name, read.top[0].decode()) == (b"a", "数")


@pytest.mark.parametrize("comment", ["训练".encode("gbk"), b"caf\xe9 \xff"], ids=["gbk", "latin-1"])
def test_a_utf_8_byte_order_mark_before_another_encoding_is_skipped(comment):
    assert read_text(b"\xef\xbb\xbf# " + comment + b'\nlayer { name: "a" }').layer[0].name == b"a"


def test_bytes_in_no_other_encoding_are_read_as_latin_1():
    read = read_text(b'# caf\xe9 \xff\nlayer { name: "a" data_param { source: "C:/caf\xe9" } }').layer[0]
    assert read.name == b"a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer", "line 1: .*Expected"),
        ("\nlayer { name: ", "line 2: .*Expected"),
        ("layer { >", "line 1: .*Expected"),
        ("}", "line 1: "),
        ('layer { name: "x', "line 1: "),
        ('layer { name: "a" name: "b" }', 'line 1: .*multiple "name" fields'),
        ("layer { convolution_param { num_output: -1 } }", "line 1: .*out of range|line 1: .*parse"),
        ("layer { convolution_param { num_output: 4294967296 } }", "line 1: .*out of range"),
        ("layer { pooling_param { pool: BEST } }", "line 1: .*no value named BEST"),
        ("layer { pooling_param { pool: 7 } }", "line 1: .*no value with number 7"),
        ("a {" * 300_000, "nested too deeply"),
        ("layer { x: 1.5.2 }", "Invalid field value"),
        ("[x.y]: 1", "line 1: "),
        (f"layer {{ pooling_param {{ pool: {'A' * 300} }} }}", "line 1: "),
        (f"layer {{ x: {'1.5.2' * 100} }}", "Invalid field value"),
    ],
)
def test_malformed_text_is_refused(text, message):
    with pytest.raises(ProtoError, match=message) as caught:
        read_text(text.encode())
    assert len(str(caught.value)) <= 200


@settings(max_examples=200)
@given(st.text(alphabet="layernm01.:-+{}<>[],;#\"'\\\n \0é", max_size=80))
def test_arbitrary_text_is_read_or_refused(text):
    with contextlib.suppress(ProtoError):
        read_text(text.encode())


# ------------------------------------------------------------------------------------------------ binary form


def net(*fields):
    return b"".join(delimited(100, field) for field in fields)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 5000])
def test_blobs_are_read(packed, dtype, count):
    values = np.random.default_rng(0).normal(size=count).astype(dtype)
    data = net(delimited(1, b"a") + delimited(7, blob(values, packed)) + delimited(7, blob(values[:1])))
    (read,) = read_layers(data)
    assert read.parameters.name == b"a"
    first, second = map(read_blob, read.blobs)
    found = first.double_data if dtype == np.float64 else first.data
    assert np.array_equal(np.array(found), values)
    assert (read_shape(first.shape), read_shape(second.shape)) == ((count,), (1,))


def test_both_forms_of_layers_are_read_and_unknown_fields_skipped():
    weights = [np.ones((2, 3), np.float32)]
    others = integer(9, 1) + delimited(9, b"\xff" * 50) + floats(9, np.ones(3), False) + floating(9, 1)
    data = (
        others
        + delimited(2, layer("old", weights, old=True))
        + others
        + delimited(100, layer("new", weights))
    )
    old, new = read_layers(data + others)
    assert (old.parameters.name, word(old.parameters, "type")) == (b"old", "INNER_PRODUCT")
    assert (new.parameters.name, new.parameters.type) == (b"new", b"InnerProduct")
    assert old.parameters.inner_product_param.num_output == 2
    assert [len(read.blobs) for read in (old, new)] == [1, 1]
    assert list(read_layers(others)) == []


_CONVOLUTION = {
    "num_output": 1, "bias_term": 2, "pad": 3, "kernel_size": 4, "group": 5, "stride": 6, "pad_h": 9,
    "pad_w": 10, "kernel_h": 11, "kernel_w": 12, "stride_h": 13, "stride_w": 14, "axis": 16, "dilation": 18,
}  # fmt: skip
_INNER_PRODUCT = {"num_output": 1, "bias_term": 2, "axis": 5, "transpose": 6}


@pytest.mark.parametrize(
    ("form", "name", "number", "fields"),
    [
        (100, "convolution_param", 106, _CONVOLUTION),
        (2, "convolution_param", 10, _CONVOLUTION),
        (100, "inner_product_param", 117, _INNER_PRODUCT),
        (2, "inner_product_param", 17, _INNER_PRODUCT),
    ],
)
def test_options_have_caffe_s_field_numbers(form, name, number, fields):
    """An option with another number would be skipped, and not compared with the prototxt's."""
    options = b"".join(integer(field, 1) for field in fields.values())
    (read,) = read_layers(delimited(form, delimited(number, options)))
    found = getattr(read.parameters, name).ListFields()
    assert {option.name: option.number for option, _ in found} == fields


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80", "byte 0: an integer does not end"),
        (integer(9, 1)[:1], "byte 1: an integer does not end"),
        (b"\x48" + b"\xff" * 11, "byte 1: an integer does not end"),
        (b"\x48" + b"\xff" * 10 + b"\0", "byte 1: an integer does not end"),
        (net(b"\x48\x80"), "byte 4: an integer does not end"),
        (net(b"\x4a\x80"), "byte 4: an integer does not end"),
        (net(b"\x80"), "byte 3: an integer does not end"),
        (b"\x4a\x05abc", "byte 0: field 9 needs 5 bytes, got 3"),
        (b"\x4a" + varint(2**63), "field 9 needs 9,223,372,036,854,775,808 bytes, got 0"),
        (b"\x4a\x01", "byte 0: field 9 needs 1 byte, got 0"),
        (b"\x4d\0\0\0", "byte 0: field 9 needs 4 bytes, got 3"),
        (net(b"\x0a\x05"), "byte 3: field 1 needs 5 bytes, got 0"),
        (net(b"\x0a\x01a") + net(b"\x0a\x05"), "byte 9: field 1 needs"),
        (b"\x4b\x4c", "byte 0: there is no field 9 of wire type 3"),
        (b"\x4e", "byte 0: there is no field 9 of wire type 6"),
        (integer(0, 1), "byte 0: there is no field 0"),
        (net(delimited(106, b"\x0a")), "byte 3: this is not a LayerParameter"),
        (net(delimited(1, b"x" * 70_000)), "byte 5: a layer has more than 65536 bytes without its blobs"),
    ],
)
def test_malformed_bytes_are_refused(data, message):
    with pytest.raises(ProtoError, match=message):
        list(read_layers(data))


def test_a_layer_of_the_maximum_size_is_read_and_a_blob_of_another_wire_type_skipped():
    name = b"x" * ((1 << 16) - 6)
    (read,) = read_layers(net(delimited(1, name) + integer(7, 1)))
    assert (read.parameters.name, read.blobs) == (name, [])


def test_a_shape_may_have_32_dimensions():
    longest = integer(1, -1)  # of eleven bytes
    assert read_shape(longest * 32) == (-1,) * 32
    with pytest.raises(ProtoError, match="a shape has more than 352 bytes"):
        read_shape(longest * 32 + b"\1")


def test_malformed_blobs_are_refused():
    with pytest.raises(ProtoError, match="a blob: this is not a BlobProto"):
        read_blob(memoryview(delimited(5, b"12345")))
    with pytest.raises(ProtoError, match="a shape has more than"):
        read_shape(delimited(1, b"\1" * 1000))


@pytest.mark.parametrize(
    "field",
    [net(b""), integer(99, 0), net(net(b"")), net(floating(3, 1)), delimited(2, b"")],
    ids=["layers", "unknown", "nested", "wire types that do not fit", "older layers"],
)
def test_too_many_fields_are_refused_early(field):
    data = field * (3_000_000 // len(field))
    start = time.process_time()
    with pytest.raises(ProtoError, match="more than 50000 fields"):
        list(read_layers(data))
    assert time.process_time() - start < 10


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(data):
    with contextlib.suppress(ProtoError):
        for read in read_layers(data):
            list(map(read_blob, read.blobs))


MEASURED = """
import resource, sys
from wae.storage.caffe_proto import ProtoError, read_blob, read_layers
before, size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 20_000_000
for head, part in zip(sys.argv[1::2], map(bytes.fromhex, sys.argv[2::2])):
    data = bytes.fromhex(head) + part * (size // len(part))
    try:
        for read in read_layers(data):
            for blob in read.blobs:
                read_blob(blob)
    except ProtoError as error:
        print(error)
    else:
        print("read")
    data = b""
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size)
"""


def test_memory_is_bounded_by_the_size_of_the_file():
    """The worst 20 MB at every level. In another process, because protobuf's memory is not Python's."""

    def announced(number, part):  # the head of a field that holds only `part`, repeated
        return varint(number << 3 | 2) + varint(20_000_000 // len(part) * len(part))

    def in_layer(head, part):
        inner = len(head) + 20_000_000 // len(part) * len(part)
        return varint(100 << 3 | 2) + varint(inner) + head

    unpacked, shape = floating(5, 1), delimited(7, b"\x0a\x00")
    parts = {
        "layers": (b"", delimited(2, b"")),
        "layer": (b"", delimited(100, b"")),
        "blobs": (in_layer(b"", delimited(7, b"")), delimited(7, b"")),
        "parameters": (in_layer(b"", delimited(106, b"\x18\x00")), delimited(106, b"\x18\x00")),
        "shape": (in_layer(announced(7, shape), shape), shape),
        "unpacked": (in_layer(announced(7, unpacked), unpacked), unpacked),
    }
    words = [word.hex() for pair in parts.values() for word in pair]
    command = [sys.executable, "-c", MEASURED, *words]
    *results, ratio = subprocess.check_output(command, text=True).splitlines()
    assert dict(zip(parts, results, strict=True)) == {
        "layers": "byte 100000: there are more than 50000 fields",
        "layer": "byte 150000: there are more than 50000 fields",
        "blobs": "byte 100004: there are more than 50000 fields",
        "parameters": "byte 250001: there are more than 50000 fields",
        "shape": "read",
        "unpacked": "read",
    }
    assert float(ratio) < 6
