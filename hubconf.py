"""Networks for ``torch.hub.load(REPOSITORY, NAME)``: see docs/hubs.md.

If the package is installed, it is used, with its compiled kernels. Otherwise the sources beside this file are
used; their ops run on plain PyTorch operators unless they were built in place.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

dependencies = ["torch", "torchvision", "numpy", "PIL", "safetensors"]

_HERE = Path(__file__).resolve().parent


def _is_installed() -> bool:
    try:
        distribution("wae-kernels")
    except PackageNotFoundError:
        return False
    return True


_path = list(sys.path)
if not _is_installed():
    sys.path.insert(0, str(_HERE / "python"))
elif Path(_path[0]).resolve() == _HERE:  # torch.hub's entry: these sources would hide the installed package
    del sys.path[0]
try:
    import torch

    import wae_kernels  # noqa: F401
    from wae.models import registry
    from wae.storage import checkpoint
    from wae.storage.shipped import Shipped
finally:
    sys.path[:] = _path


def autoencoder(pretrained: bool = True) -> torch.nn.Module:
    """Encoder and decoder of width 16, for images in 0..255, by default with the package's weights."""
    return Shipped.AUTOENCODER.model() if pretrained else registry.build("autoencoder")


def fashion_mnist(pretrained: bool = True) -> torch.nn.Module:
    """WAE around a small VGG for Fashion-MNIST's ten classes, by default with the package's weights."""
    return Shipped.FASHION_MNIST.model() if pretrained else registry.build("wae_small_vgg")


def network(name: str, classes: int = 1000, size: tuple[int, int] = (224, 224)) -> torch.nn.Module:
    """The network ``name`` with random weights: ``wae_resnet50``, or any other that ``wae train`` knows.

    ``size`` is the (H, W) of its images, which matters to networks that take only some sizes.
    """
    return registry.build(name, classes, size=size)


def wae_resnet50(classes: int = 1000) -> torch.nn.Module:
    """WAE-ResNet50 with random weights."""
    return network("wae_resnet50", classes)


def wae_vgg16(classes: int = 1000) -> torch.nn.Module:
    """WAE-VGG16 with random weights."""
    return network("wae_vgg16", classes)


def classifier(path: str) -> torch.nn.Module:
    """The classifier in the checkpoint at ``path``, in evaluation mode."""
    return checkpoint.load_classifier(Path(path))
