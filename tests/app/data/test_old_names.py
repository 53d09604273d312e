"""wae.data and wae.datasets of version 0.1: every public name works and warns where it is now."""

import importlib

import pytest

import wae.data


@pytest.mark.filterwarnings("ignore:wae.datasets is now wae.data:DeprecationWarning")
@pytest.mark.parametrize(("name", "path"), wae.data._MOVED.items())
@pytest.mark.parametrize("old", ["wae.data", "wae.datasets"])
def test_an_old_name_is_the_new_object_with_a_warning(old, name, path):
    vars(wae.data).pop(name, None)  # a name warns only once
    with pytest.warns(DeprecationWarning, match=f"{name} is now {path}"):
        found = getattr(importlib.import_module(old), name)
    module, _, name_there = path.rpartition(".")
    assert found is getattr(importlib.import_module(module), name_there)


def test_unknown_names_raise_attribute_error():
    with pytest.raises(AttributeError, match=r"wae\.data.*nothing"):
        _ = wae.data.nothing
