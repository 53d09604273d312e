"""Any bytes in a prototxt are read as a net, or refused with a ProtoError.

python tests/fuzz/fuzz_prototxt.py CORPUS
"""

import contextlib
import sys


def check(content: bytes) -> None:
    """Read ``content`` as Caffe's text form."""
    from wae.storage.caffe_proto import ProtoError, read_text

    with contextlib.suppress(ProtoError):
        read_text(content)


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports():
        import wae.storage.caffe_proto  # noqa: F401 (first imported here)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
