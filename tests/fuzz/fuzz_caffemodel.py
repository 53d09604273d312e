"""Any bytes in a caffemodel are layers or a ProtoError of one line: python tests/fuzz/fuzz_caffemodel.py CORPUS."""

import sys

from wae.storage.caffe_proto import ProtoError, read_blob, read_layers, read_shape


def check(content: bytes) -> None:
    """Read ``content`` as layers, and every blob in them."""
    try:
        for layer in read_layers(content):
            for blob in map(read_blob, layer.blobs):
                read_shape(blob.shape)
    except ProtoError as error:
        assert len(str(error)) <= 300


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
