"""The accuracy lost when only the encoder runs in int8, with everything else in float32.

    python -m benches.int8_encoder

Prints JSON: the accuracy of the included Fashion-MNIST network on all 10,000 test images, and the PSNR of
photos that the included auto-encoder decodes. The scales come from training images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import wae_kernels
from wae.data.idx import fashion_mnist
from wae.data.photos import HELD_OUT, TRAINING, photo
from wae.inference.encoder_int8 import largest_activations, quantize
from wae.inference.folding import fold
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.storage import weights_file
from wae.storage.checkpoint import load_classifier
from wae.storage.weights_file import AUTOENCODER, CLASSIFIER
from wae.training.losses import psnr

_SIDE, _CROPS = 224, 10  # of the crops of a photo, and how many there are


@torch.no_grad()
def measure() -> dict[str, Any]:
    """The accuracies and the PSNRs of decoded photos, with the encoder in float32 and in int8.

    The PSNRs, in dB, compare the two decoded photos with each other and with the original.
    """
    train, test = (fashion_mnist(None, train, False, 0) for train in (True, False))
    given, targets = test.batch(range(len(test)), 0)
    model = fold(load_classifier(CLASSIFIER), given[:1])
    some, _ = train.batch(range(0, len(train), len(train) // 100), 0)
    right = {}
    for precision, run in _in_both(model, [some]).items():
        found = torch.cat([model.scores(*run(part)).argmax(1) for part in given.split(500)])
        right[precision] = float((found == targets).double().mean())
    auto = AutoEncoder().eval()
    weights_file.load(AUTOENCODER, auto)
    runs = _in_both(auto, [crop for name in TRAINING for crop in _crops(photo(name))])
    decoded = {}
    for name in (*HELD_OUT, *TRAINING):
        image = photo(name)[None]
        made = {key: to_uint8(auto.reconstruct(*run(image), image.shape[2:])) for key, run in runs.items()}
        decoded[name] = {
            "int8 against float32": round(psnr(made["int8"], made["float32"]), 2),
            **{f"{key} against the photo": round(psnr(x, image), 2) for key, x in made.items()},
        }
    return {"Fashion-MNIST": {"images": len(test), **right}, "decoded photos": decoded}


def _in_both(model: Any, samples: Sequence[Tensor]) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """The encoder of ``model`` in float32 and in int8, by name of the precision."""
    affine = model.image_scale, model.image_shift
    quantized = quantize(model.encoder, *affine, largest_activations(model.encoder, *affine, samples))
    return {
        "float32": lambda image: model.encoder(image, *affine),
        "int8": lambda image: wae_kernels.encode_int8(image, *quantized.buffers()),
    }


def _crops(image: Tensor) -> list[Tensor]:
    """Crops of an image (3, H, W) along its diagonal."""
    steps = [[round(i * (side - _SIDE) / (_CROPS - 1)) for i in range(_CROPS)] for side in image.shape[1:]]
    return [image[None, :, y : y + _SIDE, x : x + _SIDE] for y, x in zip(*steps, strict=True)]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
