"""3 x 3 convolutions in Winograd's form: the engine ``winograd`` of :mod:`wae.engines`.

Libraries for processors compute a float32 convolution directly. Winograd's F(4x4, 3x3) needs a quarter of the
multiplications (docs/kernels.md); the op ``wae::conv3x3`` does it, with bias and ReLU, on weights that are
transformed once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn


class Convolution(nn.Module):
    """``convolution``, 3 x 3 with stride and padding 1, for inference; with ``relu``, that behind it too."""

    packed: Tensor

    def __init__(self, convolution: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.register_buffer("packed", torch.ops.wae.conv3x3_pack(convolution.weight.detach()))
        self.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach(), False)
        self.out_channels, self.relu = convolution.out_channels, relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) float32 to (N, K, h, w), channels_last."""
        y: Tensor = torch.ops.wae.conv3x3(x, self.packed, self.bias, self.out_channels, self.relu)
        return y


def replaced(module: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of ``module`` with a :class:`Convolution` wherever it is faster, as it was made for ``inputs``.

    A ReLU that follows in the same ``nn.Sequential`` becomes part of it.
    """
    module = copy.deepcopy(module)
    chosen = {id(convolution) for convolution, shape in _shapes(module, inputs) if pays(convolution, shape)}
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for index, (name, child) in enumerate(children):
            if id(child) not in chosen or not isinstance(child, nn.Conv2d):
                continue
            follower, after = children[index + 1] if index + 1 < len(children) else ("", None)
            relu = isinstance(parent, nn.Sequential) and isinstance(after, nn.ReLU)
            if relu:  # a shared one stays what it is elsewhere
                setattr(parent, follower, nn.Identity())
            setattr(parent, name, Convolution(child, relu))
    return module


def pays(convolution: nn.Conv2d, shape: Sequence[int]) -> bool:
    """Whether ``wae::conv3x3`` can compute ``convolution`` of (N, C, h, w) = ``shape``, and is the faster."""
    fits = (
        convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.padding == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and convolution.weight.dtype == torch.float32
    )
    return fits and convolution.in_channels >= 16


@torch.no_grad()
def _shapes(module: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[nn.Conv2d, torch.Size]]:
    """The convolutions that run exactly once on ``inputs``, with the shapes that they see."""
    seen: list[tuple[nn.Conv2d, torch.Size]] = []

    def note(convolution: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(convolution, nn.Conv2d)
        seen.append((convolution, given[0].shape))

    with ExitStack() as hooks:
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                hooks.enter_context(child.register_forward_pre_hook(note))
        module(*inputs)
    counts = [id(convolution) for convolution, _ in seen]
    return [entry for entry in seen if counts.count(id(entry[0])) == 1]
