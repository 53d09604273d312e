"""An image folder that the tests of several files use."""

import pytest
from data_sets import write_images


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", per_class=2)
    return tmp_path
