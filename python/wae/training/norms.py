"""Statistics of normalisations, measured on the training images."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wae.data.dataset import Dataset, sample
from wae.data.folder import ImageFiles
from wae.models.evaluating import evaluating
from wae.models.network import WAENetwork

from .plan import Plan

_SAMPLE = 2000  # training images at most
_AT_ONCE = 64  # of them that are decomposed together, which bounds memory


def measured_images(data: Dataset) -> Tensor:
    """The images of ``data`` to measure on before a training, from all over it: like often follows like.

    Raises DatasetError where none can be read.
    """
    return sample(data, _most(data))[0]


def _most(data: Dataset) -> int:
    """How many images to measure, all in memory at once: fewer files of more than 224 x 224 pixels."""
    if not isinstance(data, ImageFiles):
        return _SAMPLE
    return max(1, min(_SAMPLE, _SAMPLE * 224**2 // math.prod(data.shape)))


@torch.no_grad()
def measure_norms(model: WAENetwork, images: Tensor, low: bool) -> None:
    """Set the statistics of the two normalisations, ``low`` or of ``high`` alone, to those of ``images``.

    ``images`` may lie on another device than ``model``.
    """
    device, count = model.image_scale.device, 0
    sums, squares = torch.zeros(2, 2, 3, dtype=torch.float64, device=device)
    for part in images.split(_AT_ONCE):
        both = torch.stack(model.decompose(to_device(part, device))).double()
        sums += both.sum((1, 3, 4))
        squares += both.square().sum((1, 3, 4))
        count += both[0, :, 0].numel()
    variances = (squares - sums.square() / count) / (count - 1)
    for norm, mean, variance in zip((model.low_norm, model.high_norm), sums / count, variances, strict=True):
        if (low or norm is model.high_norm) and isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def kept_norms(model: nn.Module, plan: Plan) -> list[nn.Module]:
    """The normalisations in ``model`` with statistics of which a training by ``plan`` makes constants.

    The bodies have adapted to these while the encoder moved on: measured anew, the variances of ``high`` were
    20 times as large, and the network was worse.
    """
    if not isinstance(model, WAENetwork) or plan.norm_statistics == "batch":
        return []
    return [model.low_norm, model.high_norm]


@torch.no_grad()
def remeasure_norms(
    model: nn.Module,
    data: Dataset,
    batch: int,
    device: torch.device | str = "cpu",
    kept: Collection[nn.Module] = (),
    part: tuple[int, int] = (0, 1),
) -> None:
    """Measure the statistics of the BatchNorms in ``model`` anew: the mean of those of batches of ``data``.

    A training's own are those of its last steps' images, which were augmented. A cut that is scaled up has
    less detail than the images that the network is then used on. (Touvron et al. 2019, "Fixing the train-test
    resolution discrepancy", mend that difference by adapting statistics, too.) PyTorch's ``update_bn`` draws
    dropout meanwhile, and changes frozen BatchNorms and auxiliary ones.

    Args:
        model: on ``device``; each of its modules stays in its mode. Statistics stay of a BatchNorm that
            ``model.train()`` leaves in evaluation mode, for it is frozen, and of one that is run in training
            alone, as those of auxiliary classifiers are.
        data: images as the network is used on, of the training's: see :meth:`wae.data.dataset.Dataset.plain`.
        batch: images that the BatchNorms see at once, as in the training.
        device: where ``model`` is.
        kept: modules whose statistics stay.
        part: this process's number, and that of the processes that share each batch, as SyncBatchNorms do.

    Raises DatasetError where no image can be read.
    """
    with evaluating(model):
        norms = [norm for norm in _measuring(model) if norm not in kept]
        if not norms:
            return
        images, _ = sample(data, max(batch, _most(data)))
        shuffled = torch.Generator().manual_seed(0)  # neighbours may be alike
        order = torch.randperm(len(images), generator=shuffled)
        whole = max(batch, len(order) // batch * batch)  # as in the training: a rest may be a single image
        with _begun_anew(norms):
            for numbers in order[:whole].split(batch):
                model(to_device(images[numbers[part[0] :: part[1]]], device))


def _measuring(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms in ``model`` that measure in training. The model is in evaluation mode behind it."""
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    measuring = [norm for norm in norms if norm.training and norm.track_running_stats]
    model.eval()
    return measuring


@contextmanager
def _begun_anew(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within it ``norms`` take the mean of all batches; behind it those that saw none are as before."""
    before = [
        (norm.momentum, {name: value.clone() for name, value in norm.state_dict().items()}) for norm in norms
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    try:
        yield
    finally:
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:
                norm.load_state_dict(state)


@contextmanager
def synchronized(model: nn.Module) -> Iterator[None]:
    """Within it the BatchNorms in ``model`` are SyncBatchNorms. Behind it they are what they were, with what
    they have learnt: a SyncBatchNorm is not folded when the network is deployed."""
    norms = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)  # a layer may be used twice
        if name and isinstance(module, _BatchNorm)
    ]
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, around the same tensors
    try:
        yield
    finally:
        for name, norm in norms:
            norm.train(model.get_submodule(name).training)
            model.set_submodule(name, norm)


def to_device(images: Tensor, device: torch.device | str) -> Tensor:
    """``images`` on ``device``, in the layout that networks run fastest in."""
    return images.to(device, memory_format=torch.channels_last, non_blocking=True)
