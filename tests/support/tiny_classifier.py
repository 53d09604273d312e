"""A WAE classifier with two convolutions beside its encoder, for tests of what uses classifiers."""

from torch import nn

from wae.models.around import PooledClassifier
from wae.models.classifier import WAEClassifier
from wae_kernels.nn import Encoder


def tiny(classes=3):
    """With random weights, in evaluation mode, for images of any size. Its checkpoint has 30 KB."""

    def body(channels):
        return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())

    scale = (1 / 64,) * 3  # so that no class wins for all images
    classifiers = PooledClassifier(4, classes), PooledClassifier(5, classes)
    return WAEClassifier(Encoder(), body(4), body(1), *classifiers, scale).eval()
