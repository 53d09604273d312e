"""wae.data and wae.datasets of version 0.1: every public name is found, and reported with its new home."""

import importlib

import pytest

import wae.data

NAMES = [(module, name) for module, names in wae.data._MOVED.items() for name in names]


@pytest.mark.filterwarnings("ignore:wae.datasets is now wae.data:DeprecationWarning")
@pytest.mark.parametrize(("module", "name"), NAMES)
@pytest.mark.parametrize("old", ["wae.data", "wae.datasets"])
def test_a_name_of_before_is_the_one_of_today(old, module, name):
    vars(wae.data).pop(name, None)  # it is reported once
    with pytest.warns(DeprecationWarning, match=f"{name} is now {module}.{name}"):
        found = getattr(importlib.import_module(old), name)
    assert found is getattr(importlib.import_module(module), name)


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match=r"wae\.data.*nothing"):
        _ = wae.data.nothing
