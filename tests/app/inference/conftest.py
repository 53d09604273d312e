"""The two networks that most of these tests deploy."""

import pytest
from small_networks import small_stock, small_wae


@pytest.fixture
def model():
    return small_wae()


@pytest.fixture
def stock():
    return small_stock()
