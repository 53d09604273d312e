"""Inputs of the tests of training: a few images, a small network (tiny_classifier) and plans.

As a program, ``torchrun ... trained.py FOLDER DEVICE``, it trains the network on all processes with each
plan in SHARED, with the checkpoint FOLDER/NAME.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny_classifier import tiny

from wae.data.dataset import NOT_COUNTED, InMemory
from wae.training.plan import Plan, Stage
from wae.training.processes import joined, rank_and_world
from wae.training.trainer import Observer, train
from wae_kernels.nn import Decoder

JOINT = Stage("joint", epochs=2, learning_rate=0.05, energy_weight=0.1, transform_weight=0.1)
PLAN = Plan(
    "tiny",
    (
        Stage("transform", epochs=2, learning_rate=1e-3, optimizer="adam", energy_weight=0.1),
        Stage("classifier", epochs=2, learning_rate=0.05, warmup=0.5, weight_decay=5e-4),
        JOINT,
    ),
    batch=8,
)


FIXED = replace(PLAN, norm_statistics="fixed", stages=(*PLAN.stages[:2], replace(JOINT, learning_rate=0.005)))
"""A plan in which no step depends on the statistics of a batch, so that processes can share its batches."""

SHARED = {"fixed": FIXED, "batch": PLAN, "average": replace(PLAN, stages=(replace(JOINT, ema=0.5),))}
"""Plans for several processes. In "batch" and "average", a BatchNorm sees its process's part of a batch."""


class StopAt(Observer):
    """Ctrl-C in the second step of an epoch, counted over all stages from 1."""

    def __init__(self, epoch):
        self.left = epoch

    def start(self, plan, stage, epoch, steps):
        self.left -= 1

    def step(self, number, losses):
        if self.left == 0 and number == 2:
            raise KeyboardInterrupt


def image_set(count=32, augment=True):
    """Noise of (count, 3, 8, 8) in which one of the three colours is brighter; the label is its number."""
    random = torch.Generator().manual_seed(1)
    targets = torch.arange(count) % 3
    images = torch.randint(120, (count, 3, 8, 8), generator=random)
    images[torch.arange(count), targets] += 60
    return InMemory(images.to(torch.uint8), targets, "rgb", augment, seed=0, pad=1)


def with_gaps(data):
    """``data`` with every fourth image unreadable, so that the parts of a batch have unequal sizes."""
    original = data.batch
    data.batch = lambda indices, epoch: original([i for i in indices if i % 4], epoch)
    return data


def partly_counted(data):
    """``data`` with labels that are not counted, as of pixels: all of some images' and none of others'."""
    original = data.batch

    def batch(indices, epoch):
        images, labels = original(indices, epoch)
        return images, labels.masked_fill(torch.tensor(indices) % 8 < 3, NOT_COUNTED)

    data.batch = batch
    return data


def network(seed=0):
    """A WAE network for these images, with a decoder."""
    torch.manual_seed(seed)
    model = tiny()
    model.decoder = Decoder()
    return model


def run(plan=PLAN, model=None, data=None, **options):
    """Train, and return the model and the history."""
    model = network() if model is None else model
    return model, train(model, plan, data or image_set(), image_set(augment=False), **options)


def run_in_processes(count, folder, device="cpu"):
    """Run this file as a program, in ``count`` processes."""
    program = [__file__, str(folder), device]
    # By default torchrun's processes look each other up by the machine's name, which may have no address.
    local = ["--standalone", "--local-addr=localhost"]
    torchrun = ["-m", "torch.distributed.run", *local, f"--nproc-per-node={count}"]
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, *torchrun, *program]
    subprocess.run(command, check=True, env=environment, timeout=600)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with joined(sys.argv[2]) as device:
        for name, plan in SHARED.items():
            run(plan, state=folder / name, device=device)
        run(FIXED, data=with_gaps(image_set()), state=folder / "gaps", device=device)
        run(FIXED, data=partly_counted(image_set()), state=folder / "counted", device=device)
        single = replace(FIXED, batch=2, stages=(replace(JOINT, epochs=1, learning_rate=0.005),))
        run(single, data=with_gaps(image_set()), state=folder / "single", device=device)
        model, passes = network(), []
        model.encoder.register_forward_hook(lambda *_: passes.append(None))
        run(replace(FIXED, accumulate=2), model, with_gaps(image_set()), device=device)
        (folder / f"passes of {rank_and_world()[0]}").write_text(str(len(passes)))
