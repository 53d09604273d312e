"""A claim about digits, and plans that are small enough for the tests of `wae reproduce`."""

from wae.experiments.reproduction.fashion_mnist import FashionMnist
from wae.training.plan import Plan, Stage


def tiny_plan(model, batch, **joint):
    """A plan with one epoch of stage 1 and a joint stage with the entries ``joint``."""
    stages = (Stage("transform", 1, 1e-3, optimizer="adam"), Stage("joint", **joint))
    return Plan(model, stages, batch=batch, start="linear")


TINY = tiny_plan("wae_small_vgg", 500, epochs=1, learning_rate=0.05)
DIGITS = FashionMnist(TINY)
