"""A claim that is small enough for tests of `wae reproduce`: on digits, by a plan of two epochs."""

from wae.experiments.reproduction.fashion_mnist import FashionMnist
from wae.training import plan

TINY = plan.from_dict(
    {
        "model": "wae_small_vgg",
        "batch": 500,
        "start": "linear",
        "stages": [
            {"kind": "transform", "epochs": 1, "learning_rate": 1e-3, "optimizer": "adam"},
            {"kind": "joint", "epochs": 1, "learning_rate": 0.05},
        ],
    }
)

DIGITS = FashionMnist(TINY)
