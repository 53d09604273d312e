"""Measures the statistics of normalisations on the training images."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wae.data.dataset import Dataset, sample
from wae.data.image_files import ImageFiles
from wae.data.loading import to_device
from wae.models.evaluating import evaluating
from wae.models.network import WAENetwork

from .plan import Plan

_SAMPLE = 2000  # the most training images used
_AT_ONCE = 64  # images decomposed at a time, which bounds memory


def measured_images(data: Dataset) -> Tensor:
    """The images to measure on before a training, (N, 3, H, W) uint8.

    They are spread over all of ``data``, because neighbours are often alike. Raises DatasetError if none can
    be read.
    """
    return sample(data, _most(data))[0]


def _most(data: Dataset) -> int:
    """How many images to measure. All are in memory at once, so there are fewer if they exceed 224 x 224."""
    if not isinstance(data, ImageFiles):
        return _SAMPLE
    return max(1, min(_SAMPLE, _SAMPLE * 224**2 // math.prod(data.shape)))


@torch.no_grad()
def measure_norms(model: WAENetwork, images: Tensor, low: bool) -> None:
    """Measure the statistics of the normalisation of ``high``, and if asked that of ``low``, on ``images``.

    Args:
        model: whose encoder decomposes the images.
        images: (N, 3, H, W), on any device.
        low: set both.
    """
    device, count = model.image_scale.device, 0
    channels = model.encoder.low.out_channels, model.encoder.high.out_channels
    sums, squares = torch.zeros(2, sum(channels), dtype=torch.float64, device=device)
    for part in images.split(_AT_ONCE):
        both = torch.cat(model.decompose(to_device(part, device)), 1).double()
        sums += both.sum((0, 2, 3))
        squares += both.square().sum((0, 2, 3))
        count += both[:, 0].numel()
    variances = (squares - sums.square() / count) / (count - 1)
    measured = zip((sums / count).split(channels), variances.split(channels), strict=True)
    for norm, (mean, variance) in zip((model.low_norm, model.high_norm), measured, strict=True):
        if (low or norm is model.high_norm) and isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def kept_norms(model: nn.Module, plan: Plan) -> list[nn.Module]:
    """The normalisations in ``model`` whose statistics are constant in a training by ``plan``.

    The bodies have adapted to these constants while the encoder changed. When the statistics were
    re-estimated, the variances of ``high`` were 20 times as large, and the network was worse.
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
    """Re-estimate the statistics of the BatchNorms in ``model``, as their mean over batches of ``data``.

    The statistics after a training are those of its last steps, whose images were augmented. A crop that is
    scaled up has less detail than the images that the network is later used on. (Touvron et al. 2019, "Fixing
    the train-test resolution discrepancy", also fix that difference by adapting statistics.) PyTorch's
    ``update_bn`` is not used, because it applies dropout and changes frozen and auxiliary BatchNorms.

    Args:
        model: on ``device``; the mode of each of its modules does not change. Two kinds of BatchNorms keep
            their statistics: frozen ones, which ``model.train()`` leaves in evaluation mode, and those that
            only run in training, such as those of auxiliary classifiers.
        data: training images without augmentation: see :meth:`wae.data.dataset.Dataset.plain`.
        batch: images that the BatchNorms see at once, as in the training.
        device: where ``model`` is.
        kept: modules that keep their statistics.
        part: this process's rank and the number of processes that share each batch, as SyncBatchNorms do.

    Raises:
        DatasetError: no image can be read.
    """
    with evaluating(model):
        norms = [norm for norm in _measuring(model) if norm not in kept]
        if not norms:
            return
        images, _ = sample(data, max(batch, _most(data)))
        shuffled = torch.Generator().manual_seed(0)  # neighbours may be alike
        order = torch.randperm(len(images), generator=shuffled)
        # Full batches, as in the training: the remainder may be a single image.
        whole = max(batch, len(order) // batch * batch)
        with _reset(norms):
            for numbers in order[:whole].split(batch):
                model(to_device(images[numbers[part[0] :: part[1]]], device))


def _measuring(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms in ``model`` that update their statistics in training. Leaves it in evaluation mode."""
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    measuring = [norm for norm in norms if norm.training and norm.track_running_stats]
    model.eval()
    return measuring


@contextmanager
def _reset(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """In this block ``norms`` take the mean over all batches; those that saw none are restored afterwards."""
    before = [
        (norm.momentum, {name: value.clone() for name, value in norm.state_dict().items()}) for norm in norms
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
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
    """In this block the BatchNorms in ``model`` are SyncBatchNorms.

    Afterwards they are BatchNorms again, with what they have learned, because a SyncBatchNorm cannot be
    folded when the network is deployed.
    """
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
