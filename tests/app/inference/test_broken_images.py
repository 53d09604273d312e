"""Scores of images that are not finite."""

import pytest
import torch
from small_networks import SIZE, needs, photos, small_stock, small_wae
from torch import nn

from wae.inference.deploy import deploy
from wae.inference.export import FORMATS, export
from wae.inference.not_finite import finite_by_numpy, finite_images, nan_where_not_finite


@pytest.mark.parametrize("finite", [None, finite_by_numpy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_needs_all_of_its_inputs(finite, dtype):
    low, high = torch.zeros(2, 4, 3, 2, 2, dtype=dtype)
    low[1, 2, 1, 0], high[2, 0, 0, 1] = torch.nan, -torch.inf
    scores = nan_where_not_finite(torch.ones(4, 5), finite_images((low, high), finite))
    assert scores.isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(scores[::3], torch.ones(2, 5))


@pytest.fixture
def clamping():
    """A network that makes its input finite, in place."""

    class Clamping(nn.Sequential):
        def forward(self, image):
            return super().forward(image.clamp_(-3, 3))

    return Clamping(nn.Conv2d(3, 5, SIZE), nn.Flatten()).eval()


def broken():
    images = torch.randn(3, 3, *SIZE)
    images[1, 0, 2, 3], images[2, 1, 4, 5] = torch.inf, -torch.inf
    return images


@pytest.mark.parametrize("engine", ["eager", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_network_that_changes_its_input_has_no_scores_of_broken_images(engine, clamping):
    needs(engine)
    scores = deploy(clamping, SIZE, engine=engine)(broken())
    assert scores.isnan().all(1).tolist() == [False, True, True]


@pytest.mark.parametrize("file_format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_nor_in_a_file(file_format, clamping, tmp_path):
    if file_format == "onnx":
        needs("onnxruntime")
    export(clamping, tmp_path / "file", file_format, SIZE, image_dtype=torch.float32)
    scores = FORMATS[file_format].load((tmp_path / "file").read_bytes())(broken())
    assert scores.isnan().all(1).tolist() == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "images"), [(small_wae, photos(8).float()), (small_stock, torch.randn(8, 3, *SIZE))]
)
def test_nor_in_an_int8_file(make, images, tmp_path):
    """Although the bytes to which its first layer rounds the images are finite."""
    needs("onnxruntime")
    options = {"calibration": images, "calibration_images": 4, "max_drop": None}
    export(make(), tmp_path / "f", "onnx", SIZE, image_dtype=torch.float32, precision="int8", **options)
    scores = FORMATS["onnx"].load((tmp_path / "f").read_bytes())(broken())
    assert scores.isnan().all(1).tolist() == [False, True, True]
    assert not scores[0].isnan().any()
