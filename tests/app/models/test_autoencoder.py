"""wae.models.autoencoder: the auto-encoder, its losses, and the linear start of training."""

import math

import pytest
import torch

from wae.data import photos
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.training.linear_start import best_linear, blocks, linear_reconstruction, unblock, write_linear_start
from wae.training.losses import energy_ratio, psnr, transform_loss
from wae.training.stage1 import initial_model
from wae_kernels.nn import Decoder, Encoder


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (17, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_shapes_and_dtypes(size, dtype):
    model = AutoEncoder()
    image = torch.randint(0, 256, (2, 3, *size)).to(dtype)
    decoded, low, high = model(image)
    half = (2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    assert low.shape == high.shape == half
    assert decoded.shape == image.shape
    assert decoded.dtype == low.dtype == torch.float32


def test_uint8_and_float_images_give_the_same_result():
    model = AutoEncoder()
    image = torch.randint(0, 256, (1, 3, 9, 12), dtype=torch.uint8)
    for ours, theirs in zip(model(image), model(image.float()), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_scaling_is_stored_with_the_weights():
    state = AutoEncoder().state_dict()
    assert torch.allclose(state["image_scale"] * 255 + state["image_shift"], torch.ones(3))


def test_to_uint8_rounds_and_clamps():
    values = torch.tensor([-3.0, 0.4, 0.6, 254.6, 300.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255]


def test_transform_loss_by_hand():
    decoded = torch.zeros(1, 3, 2, 2, requires_grad=True)
    high = torch.full((1, 3, 1, 1), 3.0)
    loss = transform_loss(decoded, torch.full((1, 3, 2, 2), 2.0), high, energy_weight=0.5)
    assert (loss.reconstruction.item(), loss.energy.item(), loss.total.item()) == (4.0, 9.0, 8.5)
    loss.total.backward()
    assert decoded.grad is not None
    assert torch.allclose(decoded.grad, torch.full((1, 3, 2, 2), -4 / 12))


def test_psnr_by_hand():
    black = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert psnr(black + 255, black) == pytest.approx(0)
    assert psnr(black + 1, black) == pytest.approx(20 * math.log10(255))
    assert psnr(black, black) == math.inf


def test_energy_ratio_leaves_out_the_mean_of_low():
    low = torch.tensor([1.0, 3.0]).expand(1, 3, 1, 2) + 100
    high = torch.full((1, 3, 1, 2), 0.5)
    assert energy_ratio(low, high) == pytest.approx(0.25)


# -------------------------------------------------------------------------------------- the linear start


def scaled(image):
    return image.double() * (2 / 255) - 1


def test_blocks_and_back():
    image = torch.arange(3 * 4 * 6).reshape(3, 4, 6)
    assert blocks(image)[0].tolist() == [0, 24, 48, 1, 25, 49, 6, 30, 54, 7, 31, 55]
    assert torch.equal(unblock(blocks(image), (4, 6)), image)
    assert len(blocks(torch.zeros(3, 5, 7))) == 2 * 3


def test_the_linear_transform_is_optimal():
    """It is orthonormal, loses what the smallest eigenvalues say, and is better than 6 random directions."""
    image = scaled(photos.photo("coffee"))
    transform = best_linear([image])
    basis = torch.cat(transform, 1)
    assert torch.allclose(basis.T @ basis, torch.eye(6, dtype=torch.float64), atol=1e-9)
    error = (linear_reconstruction(image, transform) - image).square().mean()
    rows = blocks(image)
    smallest = torch.linalg.eigvalsh(rows.T @ rows / len(rows))[:6].sum() / 12
    assert error.item() == pytest.approx(smallest.item(), rel=1e-6)
    other = torch.linalg.qr(torch.randn(12, 6, dtype=torch.float64)).Q
    assert error < (rows @ other @ other.T - rows).square().mean()


def test_images_of_all_sizes_have_the_same_weight():
    """A small image counts as much as its repetition to the size of the large one."""
    small, large = torch.randn(3, 8, 8), torch.randn(3, 64, 64).cumsum(2)
    one, other = (torch.cat(best_linear([image, large]), dim=1) for image in (small, small.repeat(1, 8, 8)))
    torch.testing.assert_close(one @ one.T, other @ other.T)


def test_low_is_nearly_the_mean_colour():
    transform = best_linear([scaled(photos.photo("coffee"))])
    means = torch.eye(3, dtype=torch.float64).repeat(4, 1) / 2
    assert ((transform.low * means).sum(0) > 0.99).all()


@pytest.fixture(scope="module")
def training_photos():
    return [photos.photo(name) for name in photos.TRAINING]


@pytest.mark.parametrize("name", photos.HELD_OUT)
def test_the_initial_model_computes_the_linear_transform(training_photos, name):
    """chelsea and flower have odd sizes. Their last row or column is in no block and is left out."""
    model = initial_model(training_photos, seed=3)
    transform = best_linear(scaled(photo) for photo in training_photos)
    photo = photos.photo(name)
    even = photo[:, : photo.shape[1] // 2 * 2, : photo.shape[2] // 2 * 2]
    with torch.no_grad():
        decoded, low, high = model(photo[None])
    linear = (linear_reconstruction(scaled(even), transform) + 1) * 127.5
    inside = decoded[0, :, : even.shape[1], : even.shape[2]]
    assert (inside - linear).norm() <= 1e-5 * linear.norm()
    assert psnr(inside, even) == pytest.approx(psnr(linear, even), abs=1e-3)
    assert energy_ratio(low, high) < 0.05


def test_unused_channels_are_random_and_do_not_affect_the_image(training_photos):
    """They pass gradients to the layers that read them, so that training can start to use them."""
    one, other = (initial_model(training_photos[:1], seed) for seed in (0, 1))
    image = training_photos[0][None, :, :32, :32]
    with torch.no_grad():
        assert torch.equal(one(image).image, other(image).image)
    assert not torch.equal(one.encoder.conv2.weight, other.encoder.conv2.weight)
    decoded, _, high = one(image)
    transform_loss(decoded, image.float(), high, 1e-3).total.backward()
    for weight in (one.encoder.low.weight, one.decoder.conv3.weight):
        assert weight.grad is not None
        assert (weight.grad[:, 6:].abs() > 0).any()


def test_for_grey_images_every_channel_of_high_varies():
    """Blocks have 4 values: `low` keeps 3, `high` the one with the least energy, and 2 random features."""
    grey = scaled(photos.photo("coffee")).mean(0, keepdim=True).expand(3, -1, -1)[:, :64, :64].float()
    encoder, decoder = Encoder(), Decoder()
    transform = best_linear([grey], least_energy=True)
    assert transform.high.any(0).tolist() == [True, False, False]
    write_linear_start(encoder, decoder, transform)
    with torch.no_grad():
        low, high = encoder(grey[None])
        decoded = decoder(low, high, (64, 64))
    assert (decoded - grey).norm() <= 1e-5 * grey.norm()
    energy = high.var((0, 2, 3))
    assert (energy > 0.01 * energy[0]).all()
    assert (energy < low.var((0, 2, 3)).max()).all()


def test_the_linear_start_needs_six_channels():
    transform = best_linear([scaled(photos.photo("coffee"))])
    with pytest.raises(ValueError, match="needs 6 channels"):
        write_linear_start(Encoder(5), Decoder(5), transform)
    write_linear_start(Encoder(6), Decoder(6), transform)
