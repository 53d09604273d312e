"""Any bytes in a caffemodel are read as layers, or refused with a ProtoError.

python tests/fuzz/fuzz_caffemodel.py CORPUS
"""

import contextlib
import sys


def check(content: bytes) -> None:
    """Read ``content`` as layers, and every blob in them."""
    from wae.storage.caffe_proto import ProtoError, read_blob, read_layers, read_shape

    with contextlib.suppress(ProtoError):
        for layer in read_layers(content):
            for blob in map(read_blob, layer.blobs):
                read_shape(blob.shape)


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports():
        import wae.storage.caffe_proto  # noqa: F401 (first imported here)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
