"""Encodes files as Caffe writes them, for the tests of the readers."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

Blobs = dict[str, list[np.ndarray]]

# ---------------------------------------------------------------------------------------- protobuf's encoding


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def delimited(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def floats(number: int, values: np.ndarray, packed: bool = True) -> bytes:
    """float32 or float64, little-endian."""
    values = np.ascontiguousarray(values).ravel()
    values = values.astype(values.dtype.newbyteorder("<"))
    if packed:
        return delimited(number, values.tobytes())
    tag = varint(number << 3 | (5 if values.itemsize == 4 else 1))
    return b"".join(tag + value.tobytes() for value in values)


def floating(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


# ------------------------------------------------------------------------------------------------- caffemodel


def blob(values: np.ndarray, packed: bool = True, legacy: bool = False) -> bytes:
    if legacy:
        shape = (1,) * (4 - values.ndim) + values.shape
        sizes = b"".join(integer(number, size) for number, size in enumerate(shape, 1))
    else:
        sizes = delimited(7, delimited(1, b"".join(map(varint, values.shape))))
    diff = floats(6, np.zeros(2, np.float32), packed)  # Caffe may store gradients, too
    return sizes + floats(8 if values.itemsize == 8 else 5, values, packed) + diff


_TYPES = {4: ("Convolution", 4), 2: ("InnerProduct", 14)}  # by the rank of the weights; V1 has numbers


def _parameters(weight: np.ndarray, name: str) -> bytes:
    if weight.ndim == 2:
        return integer(1, len(weight))
    stride = integer(6, 2) if name.startswith("decom_conv_") else b""
    return integer(1, len(weight)) + integer(3, 1) + integer(4, weight.shape[-1]) + stride


def layer(name: str, blobs: Sequence[np.ndarray], old: bool = False, **options: bool) -> bytes:
    """A LayerParameter, or a V1LayerParameter if ``old``, without its tag."""
    encoded = [blob(values, **options) for values in blobs]
    type_, old_type = _TYPES.get(blobs[0].ndim if blobs else 0, ("BatchNorm", 0))
    is_convolution = type_ == "Convolution"
    head = delimited(4 if old else 1, name.encode()) + delimited(2 if old else 3, b"some bottom")
    if old:
        head += integer(5, old_type) if old_type else b""
    else:
        head += delimited(2, type_.encode())
    body = b"".join(delimited(6 if old else 7, data) for data in encoded)
    if type_ != "BatchNorm":
        number = (10 if is_convolution else 17) if old else (106 if is_convolution else 117)
        body += delimited(number, _parameters(blobs[0], name))
    return head + body


def caffemodel(blobs: Blobs, old: bool = False, **options: bool) -> bytes:
    """A NetParameter with a layer for each entry of ``blobs``, and one layer without weights."""
    layers = [layer(name, values, old, **options) for name, values in blobs.items()]
    relu = delimited(4 if old else 1, b"relu")
    return delimited(1, b"WAE") + b"".join(delimited(2 if old else 100, data) for data in [relu, *layers])


# --------------------------------------------------------------------------------------------------- prototxt


DATA = """layer {
  name: "data"
  type: "Data"
  top: "data"
  top: "label"
  include {
    phase: TEST
  }
  transform_param {
    mirror: false
    crop_size: 224
  }
  data_param { source: "somewhere/lmdb" batch_size: 100 backend: LMDB }
}"""


def prototxt(blobs: Blobs, old: bool = False) -> str:
    """The net of ``blobs``, written in the same ways as the published file."""
    layers = [DATA]

    def add(name: str, type_: str, bottoms: str, tops: str, more: str = "") -> None:
        if old:
            words = {"InnerProduct": "INNER_PRODUCT", "ReLU": "RELU"}
            written = words.get(type_, type_.upper())
        else:
            written = f'"{type_}"'
        ends = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
        lines = [*ends, f'name: "{name}"', f"type: {written}", *([more] if more else [])]
        layers.append("layer {\n  " + "\n  ".join(lines) + "\n}")

    def convolution(name: str, bottom: str, more: str = "") -> str:
        filler = '    weight_filler {\n      type: "xavier"\n    }\n'
        size = f"    num_output: {len(blobs[name][0])}\n    pad: 1\n    kernel_size: 3\n"
        add(name, "Convolution", bottom, name, f"convolution_param {{\n{size}{more}{filler}  }} ")
        return name

    def relu(blob_name: str) -> str:
        add(f"relu_{blob_name}", "ReLU", blob_name, blob_name)
        return blob_name

    top = "data"
    for number in (1, 2, 3):
        top = relu(convolution(f"decom_conv{number}", top, "    stride: 1\n"))
    add("decom_conv3_split", "Split", top, f"{top}_CA {top}_CH")
    ends = {}
    for branch in ("CA", "CH"):
        layers.append(f"# For {branch} images")
        last = convolution(f"decom_conv_{branch}", f"{top}_{branch}", "    stride: 2\n")
        norm = f"{last}3_norm"
        options = "batch_norm_param {\n    use_global_stats: true\n  }\n  include {\n    phase: TEST\n  }"
        add(f"bn_{branch}", "BatchNorm", last, norm, options)
        last = norm
        for block in range(1, 6):
            names = [f"conv{block}_{number}_{branch}" for number in (1, 2, 3)]
            names = [name for name in names if name in blobs]
            for name in names:
                last = relu(convolution(name, last))
            if names:
                pool = "pooling_param {\n    pool: MAX\n    kernel_size: 2\n    stride: 2\n  }"
                add(f"pool{block}_{branch}", "Pooling", last, f"pool{block}_{branch}", pool)
                last = f"pool{block}_{branch}"
        ends[branch] = last
    add("split_pool_CA", "Split", ends["CA"], "low_1 low_2")
    add("concat_fusion", "Concat", f"low_2 {ends['CH']}", "both", "concat_param {\n    axis: 1\n  }")
    for end, last in (("CA", "low_1"), ("fusion", "both")):
        for number in (6, 7, 8):
            name = f"fc{number}_{end}"
            more = f"inner_product_param {{\n    num_output: {len(blobs[name][0])}\n  }}"
            add(name, "InnerProduct", last, name, more)
            last = name
            if number < 8:
                relu(last)
                add(
                    f"drop{number}_{end}",
                    "Dropout",
                    last,
                    last,
                    "dropout_param {\n    dropout_ratio: 0.5\n  }",
                )
        add(f"split_{last}", "Split", last, f"{last}_1 {last}_2")
    add("score-sum", "Eltwise", "fc8_CA_1 fc8_fusion_1", "fc8_average", "eltwise_param { operation: SUM }")
    add("accuracy", "Accuracy", "fc8_CA_2 label", "accuracy", "include { phase: TEST }\n  #accuracy_param {}")
    text = 'name: "VGGNet"\n' + "\n\n".join(layers) + "\n"
    return text.replace("layer {", "layers {").replace('"Data"', "DATA") if old else text
