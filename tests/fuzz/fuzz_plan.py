"""Any bytes in a TOML file are read as a plan, written and read again, or refused with a PlanError.

python tests/fuzz/fuzz_plan.py CORPUS
"""

import sys
import tempfile
from pathlib import Path

_FILE = Path(tempfile.mkdtemp(), "input.toml")


def check(content: bytes) -> None:
    """Read ``content`` as ``wae train --plan`` does."""
    from wae.training import plan

    _FILE.write_bytes(content)
    message = ""
    try:
        read = plan.read(_FILE)
    except plan.PlanError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{_FILE}: ")
        assert len(message) < 2000
        return
    _FILE.write_text(read.as_toml(), encoding="utf-8")
    assert plan.read(_FILE) == read


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["wae.training.plan", "tomllib"]):
        import wae.training.plan  # noqa: F401 (first imported here)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
