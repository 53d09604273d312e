"""Any bytes in a prototxt are a net or a ProtoError of one line: python tests/fuzz/fuzz_prototxt.py CORPUS."""

import sys

from wae.storage.caffe_proto import ProtoError, read_text


def check(content: bytes) -> None:
    """Read ``content`` as Caffe's text form."""
    try:
        read_text(content)
    except ProtoError as error:
        assert len(str(error)) <= 200


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
