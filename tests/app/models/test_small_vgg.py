"""wae.models.small_vgg: the small networks' units and sizes."""

import pytest
import torch

from wae.models.small_vgg import SmallVGG, small_photo_vgg_at, small_vgg_half, wae_small_vgg


@pytest.mark.parametrize("make", [SmallVGG, small_vgg_half, wae_small_vgg])
def test_images_of_fashion_mnist_get_zero_mean_and_unit_variance(make):
    """Its training images have a mean of 73 and a standard deviation of 90."""
    model = make()
    units = [grey * model.image_scale + model.image_shift for grey in (73, 73 + 90)]
    torch.testing.assert_close(units, [torch.zeros(3), torch.ones(3)])


def test_a_network_at_another_size_sees_images_of_that_size():
    model, seen = small_photo_vgg_at(48, 5).eval(), []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    assert model(torch.zeros(2, 3, 64, 60, dtype=torch.uint8)).shape == (2, 5)
    assert seen == [(2, 3, 48, 48)]
