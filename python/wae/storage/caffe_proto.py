"""Reads the Caffe messages that describe a network and its weights, with the protobuf library.

The descriptors are built here, so that neither generated code nor ``protoc`` is needed. Fields without a
descriptor are skipped. Strings are read as bytes, because Caffe does not define the encoding of names and
paths.

A caffemodel may have gigabytes and is not trusted. The library gets only the small fields of one layer, or
one blob, at a time: once it is parsed, an empty message of two bytes takes many times that much memory.
"""

from __future__ import annotations

import codecs
import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as _Field
from google.protobuf.message import DecodeError

from wae.errors import WaeError
from wae.wording import counted

MAX_FIELDS = 50_000
"""The most fields in a caffemodel, without those in blobs. 100 layers have about 2000."""
MAX_LAYER = 1 << 16
"""The most bytes of a layer without its blobs."""

Message = Any  # an instance of one of the library's classes, which are created at run time


class ProtoError(WaeError):
    """A malformed message. The text gives the place and the reason, but not the file's name."""


# ------------------------------------------------------------------------------------------------ descriptors

_ONE, _MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED
_BOOL, _BYTES, _FLOAT, _DOUBLE = _Field.TYPE_BOOL, _Field.TYPE_BYTES, _Field.TYPE_FLOAT, _Field.TYPE_DOUBLE
_INT, _UINT = _Field.TYPE_INT32, _Field.TYPE_UINT32
_FieldSpec = tuple[Any, ...]
"""Number, label, type and perhaps default. A type is a constant, a message's name or an enum's values."""

_V1_TYPES = {
    "NONE": 0, "ABSVAL": 35, "ACCURACY": 1, "ARGMAX": 30, "BNLL": 2, "CONCAT": 3, "CONTRASTIVE_LOSS": 37,
    "CONVOLUTION": 4, "DATA": 5, "DECONVOLUTION": 39, "DROPOUT": 6, "DUMMY_DATA": 32, "ELTWISE": 25,
    "EUCLIDEAN_LOSS": 7, "EXP": 38, "FLATTEN": 8, "HDF5_DATA": 9, "HDF5_OUTPUT": 10, "HINGE_LOSS": 28,
    "IM2COL": 11, "IMAGE_DATA": 12, "INFOGAIN_LOSS": 13, "INNER_PRODUCT": 14, "LRN": 15, "MEMORY_DATA": 29,
    "MULTINOMIAL_LOGISTIC_LOSS": 16, "MVN": 34, "POOLING": 17, "POWER": 26, "RELU": 18, "SIGMOID": 19,
    "SIGMOID_CROSS_ENTROPY_LOSS": 27, "SILENCE": 36, "SLICE": 33, "SOFTMAX": 20, "SOFTMAX_LOSS": 21,
    "SPLIT": 22, "TANH": 23, "THRESHOLD": 31, "WINDOW_DATA": 24,
    "BATCHNORM": -1,  # not in caffe.proto
}  # fmt: skip


def _sides(name: str, number: int) -> dict[str, _FieldSpec]:
    """A size as two fields, of which that of the height has this number."""
    return {f"{name}_{side}": (field, _ONE, _UINT) for field, side in enumerate("hw", number)}


# Before transform_param existed, data layers had its options themselves, under other numbers. They matter
# only in the text form, in which a field has a name and no number.
_PARAMETERS = {
    "transform_param": ("TransformationParameter", 100, 36),
    "data_param": ("TransformationParameter", 107, 11),
    "image_data_param": ("TransformationParameter", 115, 15),
    "window_data_param": ("TransformationParameter", 129, 20),
    "concat_param": ("ConcatParameter", 104, 9),
    "convolution_param": ("ConvolutionParameter", 106, 10),
    "eltwise_param": ("EltwiseParameter", 110, 24),
    "inner_product_param": ("InnerProductParameter", 117, 17),
    "pooling_param": ("PoolingParameter", 121, 19),
    "relu_param": ("ReLUParameter", 123, 30),
    "batch_norm_param": ("BatchNormParameter", 139, 139),  # the older form has none in caffe.proto
}
"""The options of a layer: the message, and the field's number in a LayerParameter and a V1LayerParameter."""

_MESSAGES: dict[str, dict[str, _FieldSpec]] = {
    "ConvolutionParameter": {
        "num_output": (1, _ONE, _UINT),
        "bias_term": (2, _ONE, _BOOL, "true"),
        "pad": (3, _MANY, _UINT),
        "kernel_size": (4, _MANY, _UINT),
        "group": (5, _ONE, _UINT, "1"),
        "stride": (6, _MANY, _UINT),
        "axis": (16, _ONE, _INT, "1"),
        "dilation": (18, _MANY, _UINT),
        **_sides("pad", 9),
        **_sides("kernel", 11),
        **_sides("stride", 13),
    },
    "InnerProductParameter": {
        "num_output": (1, _ONE, _UINT),
        "bias_term": (2, _ONE, _BOOL, "true"),
        "axis": (5, _ONE, _INT, "1"),
        "transpose": (6, _ONE, _BOOL),
    },
    "BatchNormParameter": {
        "use_global_stats": (1, _ONE, _BOOL, "true"),  # the value in phase TEST; caffe.proto has no default
        "eps": (3, _ONE, _FLOAT, "1e-5"),
    },
    "PoolingParameter": {
        "pool": (1, _ONE, {"MAX": 0, "AVE": 1, "STOCHASTIC": 2}),
        "kernel_size": (2, _MANY, _UINT),  # in caffe.proto these three are repeated only for convolutions
        "stride": (3, _MANY, _UINT),
        "pad": (4, _MANY, _UINT),
        **_sides("kernel", 5),
        **_sides("stride", 7),
        **_sides("pad", 9),
        "global_pooling": (12, _ONE, _BOOL),
        "round_mode": (13, _ONE, {"CEIL": 0, "FLOOR": 1}),
        # From forks of Caffe, before it had round_mode. Their numbers differ, so these are for texts only.
        "ceil_mode": (1001, _ONE, _BOOL, "true"),
        "torch_pooling": (1002, _ONE, _BOOL),
    },
    "ConcatParameter": {"axis": (2, _ONE, _INT), "concat_dim": (1, _ONE, _UINT, "1")},
    "EltwiseParameter": {
        "operation": (1, _ONE, {"PROD": 0, "SUM": 1, "MAX": 2}, "SUM"),
        "coeff": (2, _MANY, _FLOAT),
    },
    "ReLUParameter": {"negative_slope": (1, _ONE, _FLOAT)},
    "TransformationParameter": {
        "scale": (1, _ONE, _FLOAT, "1"),
        "mean_file": (4, _ONE, _BYTES),
        "mean_value": (5, _MANY, _FLOAT),
        "force_gray": (7, _ONE, _BOOL),
    },
    "NetStateRule": {
        "phase": (1, _ONE, {"TRAIN": 0, "TEST": 1}),
        "min_level": (2, _ONE, _INT),
        "max_level": (3, _ONE, _INT),
        "stage": (4, _MANY, _BYTES),
    },
    "LayerParameter": {
        "name": (1, _ONE, _BYTES),
        "type": (2, _ONE, _BYTES),
        "bottom": (3, _MANY, _BYTES),
        "top": (4, _MANY, _BYTES),
        "include": (8, _MANY, "NetStateRule"),
        "exclude": (9, _MANY, "NetStateRule"),
        **{name: (number, _ONE, kind) for name, (kind, number, _) in _PARAMETERS.items()},
    },
    "V1LayerParameter": {
        "bottom": (2, _MANY, _BYTES),
        "top": (3, _MANY, _BYTES),
        "name": (4, _ONE, _BYTES),
        "type": (5, _ONE, _V1_TYPES),
        "include": (32, _MANY, "NetStateRule"),
        "exclude": (33, _MANY, "NetStateRule"),
        **{name: (number, _ONE, kind) for name, (kind, _, number) in _PARAMETERS.items()},
    },
    "NetParameter": {
        "input": (3, _MANY, _BYTES),
        "layers": (2, _MANY, "V1LayerParameter"),
        "layer": (100, _MANY, "LayerParameter"),
    },
    "BlobShape": {"dim": (1, _MANY, _Field.TYPE_INT64)},
    "BlobProto": {
        "num": (1, _ONE, _INT),
        "channels": (2, _ONE, _INT),
        "height": (3, _ONE, _INT),
        "width": (4, _ONE, _INT),
        "data": (5, _MANY, _FLOAT),
        # a BlobShape, as bytes, so that its length is checked before it is parsed
        "shape": (7, _ONE, _BYTES),
        "double_data": (8, _MANY, _DOUBLE),
    },
}
"""The part of ``caffe.proto`` that is needed here, with its field numbers and defaults."""


def _described() -> descriptor_pb2.FileDescriptorProto:
    """:data:`_MESSAGES` as the library describes a file."""
    file = descriptor_pb2.FileDescriptorProto(name="wae/caffe.proto", package="caffe", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for key, (number, label, kind, *default) in fields.items():
            field = message.field.add(name=key, number=number, label=label)
            if isinstance(kind, Mapping):
                enum = message.enum_type.add(name=f"{key}_enum")
                for word, value in kind.items():
                    enum.value.add(name=word, number=value)
                field.type_name = f".caffe.{name}.{key}_enum"
            elif isinstance(kind, str):
                field.type_name = f".caffe.{kind}"
            else:
                field.type = kind
            if default:
                field.default_value = default[0]
    return file


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_described())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()


def word(message: Message, field: str) -> str:
    """The name of the value of an enum ``field``."""
    described = message.DESCRIPTOR.fields_by_name[field].enum_type
    return str(described.values_by_number[getattr(message, field)].name)


# -------------------------------------------------------------------------------------------------- text form


def read_text(data: bytes) -> Message:
    """The NetParameter in a prototxt. Raises ProtoError if it is malformed."""
    try:
        return text_format.Parse(_decoded(data), _CLASSES["NetParameter"](), allow_unknown_field=True)
    except text_format.ParseError as error:
        line, text = error.GetLine(), str(error)
        raise ProtoError(f"line {line}: {text.partition(' : ')[2]}"[:200] if line else text[:200]) from None
    except RecursionError:
        raise ProtoError("messages are nested too deeply") from None


def _decoded(data: bytes) -> str:
    """The text in ``data``, whose comments and paths may be in any encoding.

    It never fails, because every byte is a Latin-1 character.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    data = data.removeprefix(codecs.BOM_UTF8)  # editors add it even to text in another encoding
    for encoding in ("utf-16",) if utf16 else ("utf-8", "gbk"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode("latin-1")


# ------------------------------------------------------------------------------------------------ binary form


class Layer(NamedTuple):
    """A layer of a caffemodel, with its blobs not parsed yet."""

    parameters: Message
    """A LayerParameter or a V1LayerParameter."""
    blobs: list[memoryview]
    """The bytes of a BlobProto each."""


_LAYERS = {2: ("V1LayerParameter", 6), 100: ("LayerParameter", 7)}
"""By field number of a NetParameter: the message in that field, and the field number of its ``blobs``."""
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5  # the wire types; 3 and 4, groups, are obsolete
_MAX_SHAPE = 32 * 11  # bytes: Caffe's blobs have at most 32 axes


def read_layers(data: mmap.mmap | bytes) -> Iterator[Layer]:
    """The layers of the NetParameter in ``data``, in order. Raises ProtoError if it is malformed."""
    budget = iter(range(MAX_FIELDS))
    net = memoryview(data)
    for number, at, payload, _ in _fields(net, budget, 0):
        if number in _LAYERS and payload is not None:
            kind, blobs_number = _LAYERS[number]
            blobs, others = [], []
            for inner, _, part, field in _fields(payload, budget, at):
                if inner == blobs_number and part is not None:
                    blobs.append(part)
                else:
                    others.append(field)
            if sum(map(len, others)) > MAX_LAYER:
                raise ProtoError(f"byte {at}: a layer has more than {MAX_LAYER} bytes without its blobs")
            yield Layer(_parsed(kind, b"".join(others), f"byte {at}"), blobs)


def read_blob(data: memoryview) -> Message:
    """The BlobProto in ``data``. Raises ProtoError if it is malformed."""
    return _parsed("BlobProto", bytes(data), "a blob")


def read_shape(data: bytes) -> tuple[int, ...]:
    """The sizes in the BlobShape in ``data``. Raises ProtoError if it is malformed."""
    if len(data) > _MAX_SHAPE:
        raise ProtoError(f"a shape has more than {_MAX_SHAPE} bytes")
    return tuple(_parsed("BlobShape", data, "a shape").dim)


def _parsed(kind: str, data: bytes, where: str) -> Message:
    try:
        return _CLASSES[kind].FromString(data)
    except (DecodeError, ValueError) as error:
        raise ProtoError(f"{where}: this is not a {kind} ({error})") from None


def _fields(
    data: memoryview, budget: Iterator[int], offset: int
) -> Iterator[tuple[int, int, memoryview | None, memoryview]]:
    """The fields of a message: number, the payload's offset, the payload if it has a length, all bytes.

    Args:
        data: the message.
        budget: yields an item for every field that is still allowed.
        offset: the offset of ``data`` in the file; the payloads' offsets are in the file too.
    """
    at = 0
    while at < len(data):
        start = at
        if next(budget, None) is None:
            raise ProtoError(f"byte {offset + start}: there are more than {MAX_FIELDS} fields")
        tag, at = _varint(data, at, offset)
        number, kind = tag >> 3, tag & 7
        size = {_FIXED32: 4, _FIXED64: 8, _VARINT: 0}.get(kind)
        if kind == _VARINT:
            _, at = _varint(data, at, offset)
        elif kind == _DELIMITED:
            size, at = _varint(data, at, offset)
        if size is None or number == 0:
            _fail(offset + start, f"there is no field {number} of wire type {kind}")
        if size > len(data) - at:
            _fail(offset + start, f"field {number} needs {counted(size, 'byte')}, got {len(data) - at}")
        at += size
        payload = data[at - size : at] if kind == _DELIMITED else None
        yield number, offset + at - size, payload, data[start:at]


def _varint(data: memoryview, at: int, offset: int) -> tuple[int, int]:
    """The integer at ``at``, which has seven bits in each byte, and the position behind it."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    return _fail(offset + at, "an integer does not end")


def _fail(at: int, why: str) -> NoReturn:
    raise ProtoError(f"byte {at}: {why}")
