"""Images per second of `wae predict --ray` compared with the plain loop, on the same cores.

    python -m benches.ray_overhead [IMAGES] [FOLDER]

Runs WAE-ResNet18 in eager PyTorch on IMAGES (10,000) JPEG files of 320 x 320 pixels, which are read and
decoded. Each way also runs on a few images: the additional seconds for the others give the rate, and the rest
of the seconds is the start. The two ways run once, one after the other, because each takes minutes; so use a
machine on which nothing else runs. Prints JSON, and writes it to FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wae.data.input import IMAGENET
from wae.data.walk import Found, find
from wae.experiments.bench import crops
from wae.experiments.machine import machine
from wae.inference import predict
from wae.integrations import ray
from wae.models.pairs import pair
from wae.storage.checkpoint import load_classifier, save_classifier

NETWORK = "wae_resnet18"
IMAGES, FEW = 10_000, 64
_PHOTOS = 16  # that differ from each other


def measure(number: int, folder: Path) -> dict[str, Any]:
    """See above; ``folder`` gets the files."""
    weights = folder / "model.safetensors"
    save_classifier(weights, pair(NETWORK.removeprefix("wae_")).wae, NETWORK, None, IMAGENET)
    found = _files(number, folder / "photos")

    def plain(some: Sequence[Found]) -> None:
        network = predict.runner(load_classifier(weights), IMAGENET)
        assert sum(1 for _ in predict.predict(network, some, IMAGENET)) == len(some)

    def cluster(some: Sequence[Found]) -> None:
        assert not ray.predict(some, weights, folder / "out", "local", force=True)

    sides = {"plain loop": _timed(plain, found), "ray": _timed(cluster, found)}
    lost = 1 - sides["ray"]["images_per_second"] / sides["plain loop"]["images_per_second"]
    return {"network": NETWORK, "images": number, **sides, "overhead": round(lost, 4)}


def _files(number: int, folder: Path) -> list[Found]:
    """``number`` JPEG files: a few photos under many names."""
    folder.mkdir()
    for index, photo in enumerate(crops(320, _PHOTOS)):
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(folder / f"{index:06}.jpg", quality=90)
    for index in range(_PHOTOS, number):
        os.link(folder / f"{index % _PHOTOS:06}.jpg", folder / f"{index:06}.jpg")
    return list(find([folder]))


def _timed(work: Callable[[Sequence[Found]], None], found: Sequence[Found]) -> dict[str, float]:
    seconds = []
    for some in (found[:FEW], found):
        started = time.perf_counter()
        work(some)
        seconds.append(time.perf_counter() - started)
    rate = (len(found) - FEW) / (seconds[1] - seconds[0])
    return {"images_per_second": round(rate, 2), "start": round(seconds[0] - FEW / rate, 2)}


if __name__ == "__main__":
    number = int(sys.argv[1]) if sys.argv[1:] else IMAGES
    with tempfile.TemporaryDirectory() as made:
        result = {"machine": machine(), **measure(number, Path(made))}
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if sys.argv[2:]:
        Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
        Path(sys.argv[2], "ray-overhead.json").write_text(text)
