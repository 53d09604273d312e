"""An auto-encoder on a folder of photos (benches/autoencoder.py)."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from benches.autoencoder import measure
from wae.data.photos import photo
from wae.storage.weights_file import WEIGHTS


def test_photos_are_measured_and_grey_ones_left_out_of_the_means(tmp_path: Path) -> None:
    image = photo("chelsea")[:, :65, :80].permute(1, 2, 0)
    Image.fromarray(image.numpy()).save(tmp_path / "cat.png")
    Image.fromarray(image[:, :, :1].expand(-1, -1, 3).contiguous().numpy()).save(tmp_path / "grey.png")
    with torch.inference_mode():
        found = measure(WEIGHTS / "autoencoder.safetensors", tmp_path, tmp_path)
    assert (found["photos"], found["exact"]) == (2, 1)
    assert found["own linear"] >= found["training's linear"] > 30
    assert found["share"] == (found["psnr"] > found["own linear"])
    assert 0 < found["energy"] < 100
