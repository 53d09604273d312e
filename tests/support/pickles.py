"""Pickles, which can run code, in place of files that cannot."""

from __future__ import annotations

from typing import Any

import pytest


class RunsCode:
    """Its pickle runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was read",))
