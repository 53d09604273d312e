"""How well an auto-encoder reconstructs the photos of a folder, compared with the best linear transforms.

    python -m benches.autoencoder WEIGHTS FOLDER TRAINING [FILE]

Each photo is measured on its own, as `wae.training.stage1.quality` does. So are two linear transforms of
2 x 2 blocks that keep 6 of 12 numbers: the best one for that photo, and the best one for the photos of
TRAINING, the folder that the weights were trained on. Prints JSON, and writes it to FILE. All PSNRs have
peak 255:

    psnr               mean PSNR of the auto-encoder, in dB
    own linear         mean PSNR of the best linear transform of each photo
    training's linear  mean PSNR of the best linear transform of the photos of TRAINING
    share              share of the photos on which the auto-encoder beats the photo's own linear transform
    energy             median over the photos of mean square of ``high`` / variance of ``low``, in %
    exact              photos whose own linear transform is lossless (grey ones); the means leave them out
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wae.data.images import read_image
from wae.data.walk import LeftOut, find
from wae.experiments.machine import machine
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.progress import track
from wae.storage import weights_file
from wae.training import stage1
from wae.training.linear_start import LinearTransform, best_linear, linear_reconstruction
from wae.training.losses import psnr


def photos(folder: Path, what: str) -> Iterator[Tensor]:
    """Each photo as (3, H, W) uint8, with a progress bar; cropped to even sides for the linear transforms."""
    paths = [found.path for found in find([folder], LeftOut())]
    for path in track(paths, what):
        image = read_image(path)
        yield image[:, : image.shape[1] // 2 * 2, : image.shape[2] // 2 * 2]


def linear_psnr(photo: Tensor, transform: LinearTransform) -> float:
    """The PSNR of the photo after the transform, rounded as the auto-encoder's result is."""
    decoded = linear_reconstruction(photo.double() / 127.5 - 1, transform)
    return psnr(to_uint8((decoded + 1) * 127.5), photo)


def measure(weights: Path, folder: Path, training: Path) -> dict[str, Any]:
    """See above."""
    model = AutoEncoder()
    weights_file.load(weights, model)
    model.eval()
    scaled = (photo / 127.5 - 1 for photo in photos(training, "the best linear transform"))
    fitted = best_linear(scaled)
    rows, energies, exact = [], [], 0
    for photo in photos(folder, "photos"):
        quality = stage1.quality(model, photo)
        energies.append(quality.energy)
        own = linear_psnr(photo, best_linear([photo / 127.5 - 1]))
        if math.isinf(own):
            exact += 1
        else:
            rows.append((quality.psnr, own, linear_psnr(photo, fitted)))
    ours, own_linear, trainings_linear = map(statistics.mean, zip(*rows, strict=True))
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "photos": len(energies),
        "exact": exact,
        "psnr": round(ours, 3),
        "own linear": round(own_linear, 3),
        "training's linear": round(trainings_linear, 3),
        "share": round(statistics.mean(ours > own for ours, own, _ in rows), 4),
        "energy": round(100 * statistics.median(energies), 3),
    }


if __name__ == "__main__":
    weights, folder, training, *file = map(Path, sys.argv[1:])
    with torch.inference_mode():
        found = measure(weights, folder, training)
    text = json.dumps({"machine": machine(), **found}, indent=1) + "\n"
    print(text)
    if file:
        file[0].write_text(text)
