"""``python -m wae.models.segmentation.costs``: the costs of segmenting one image, as a Markdown table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from torch import nn

from wae.models.counting import count
from wae.models.meta import on_meta

from .networks import network
from .segmenter import HalfResolutionSegmenter, wae_segmenter

SIZE = (360, 480)
"""(H, W) of CamVid's images."""
CLASSES = 11
"""CamVid's classes."""

_COMPARED = {
    "ENet": "enet",
    "mobilenet_deconv": "mobilenet_deconv",
    "mobilenet_deconv, compensated": "mobilenet_deconv_compensated",
    "ICNet": "icnet",
    "pspnet_resnet18": "pspnet_resnet18",
    **{name: name for name in ("deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")},
}
"""The names in :mod:`wae.models.segmentation.networks`, by those in the table."""

Builder = Callable[[], nn.Module]


def compared() -> dict[str, Builder]:
    """Constructors of our networks and of some from the libraries, by their names in the table."""
    return {title: partial(network, name, CLASSES) for title, name in _COMPARED.items()}


def table() -> str:
    """A table of the multiply-adds at full resolution, at half resolution, and with WAE."""
    lines = [
        "| network | parameters | multiply-adds | at half the resolution | WAE | fewer than the network's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, make in compared().items():
        parameters, full = count(on_meta(make), SIZE)
        half, wae = (_multiply_adds(form, make) for form in (HalfResolutionSegmenter, wae_segmenter))
        billions = " | ".join(f"{n / 1e9:.2f} G" for n in (full, half, wae))
        lines.append(f"| {name} | {parameters:,} | {billions} | {full / wae:.1f}x |")
    return "\n".join(lines)


def _multiply_adds(form: Callable[[nn.Module], nn.Module], make: Builder) -> int:
    return count(on_meta(lambda: form(make())), SIZE).multiply_adds


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
