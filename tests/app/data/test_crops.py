"""wae.data.crops: random crops, their orientations and channel orders, and what a batch depends on."""

import pytest
import torch

from wae.data.crops import Crops
from wae.data.dataset import DatasetError
from wae.data.loading import batches, fingerprint


def noise(height=40, width=50, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)


def test_crops_depend_only_on_seed_epoch_and_index():
    crops = Crops([noise()], 16, 30, seed=0)
    first, labels = crops.batch([3, 4], 5)
    torch.manual_seed(99)
    again, _ = Crops([noise()], 16, 30, seed=0).batch([3, 4], 5)
    assert torch.equal(again, first)
    assert first.dtype == torch.uint8
    assert labels.tolist() == [0, 0]
    for other in (crops.batch([3, 4], 6)[0], Crops([noise()], 16, 30, seed=1).batch([3, 4], 5)[0]):
        assert not torch.equal(other[..., :15, :15], first[..., :15, :15])
    alone = crops.batch([4], 5)[0]
    assert torch.equal(alone[0, :, :15, :15], first[1, :, :15, :15])  # the batch makes no difference


def test_batches_have_even_and_odd_sizes_and_all_photos_are_used():
    crops = Crops([noise(), torch.zeros_like(noise())], 16, 60, seed=0)
    taken = [images for images, _ in batches(crops, 2, 0, 0, True)]
    assert len(taken) == 30
    assert {tuple(images.shape[2:]) for images in taken} == {(16, 16), (15, 16), (16, 15), (15, 15)}
    black = sum(int(not crop.any()) for images in taken for crop in images)
    assert 15 < black < 45


def test_crops_come_in_every_orientation_and_channel_order():
    """The photo is as large as a crop and its pixels all differ: 8 orientations times 6 channel orders."""
    photo = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    crops, seen = Crops([photo], 3, 1000, seed=0), set()
    for step in range(120):
        batch = crops.batch(range(10 * step % 1000, 10 * step % 1000 + 10), step // 100)[0]
        seen |= {tuple(crop.flatten().tolist()) for crop in batch if crop.shape == (3, 3, 3)}
    assert len(seen) == 8 * 6
    assert all(sorted(crop) == list(range(27)) for crop in seen)


def test_crops_reach_every_pixel():
    photo = torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5)
    crops = Crops([photo], 3, 200, seed=0)
    assert {pixel for n in range(200) for pixel in crops.batch([n], 0)[0].flatten().tolist()} == {*range(60)}


def test_different_photos_have_different_fingerprints():
    one, same, other = (fingerprint(Crops([noise(seed=seed)], 16, 30, 0)) for seed in (0, 0, 1))
    assert one == same != other
    assert fingerprint(Crops([noise()], 8, 30, 0)) != one
    two, changed = (fingerprint(Crops([noise(), noise(seed=seed)], 16, 30, 0)) for seed in (1, 2))
    assert two != changed


@pytest.mark.parametrize(
    ("photos", "crop", "length", "message"),
    [
        ([], 16, 30, "need at least one"),
        ([noise(), noise(15, 40)], 16, 30, "15 x 40 is smaller than a crop of 16 x 16"),
        ([noise(40, 15)], 16, 30, "40 x 15 is smaller than a crop of 16 x 16"),
        ([noise()], 1, 30, "crop and length: need at least 2 and 1, got 1 and 30"),
        ([noise()], 16, 0, "crop and length: need at least 2 and 1, got 16 and 0"),
    ],
    ids=["none", "low", "narrow", "crop", "length"],
)
def test_invalid_arguments_are_refused(photos, crop, length, message):
    with pytest.raises(DatasetError, match=message):
        Crops(photos, crop, length, 0)
