"""Weights on disk: safetensors, with what made them as JSON in the file's metadata.

A checkpoint that training can go on from holds the optimizer's tensors too, under ``optimizer.``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from wae.files import written

_OPTIMIZER = "optimizer."
WEIGHTS = Path(__file__).parent.parent / "weights"
"""The folder of the weights that come with this package."""


class CheckpointError(Exception):
    """A checkpoint that cannot be used. The message names the file and says why."""


def save(
    path: Path,
    model: nn.Module,
    recipe: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    force: bool = False,
) -> None:
    """Write the model's state, and the optimizer's if given, to ``path``, whole or not at all.

    Args:
        recipe: what made these weights; anything that JSON can hold.
        force: replace the file that is there.

    Raises:
        FileExistsError: there is a file at ``path`` and ``force`` is false.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        tensors |= {
            f"{_OPTIMIZER}{name}": tensor for name, tensor in _optimizer_tensors(model, optimizer).items()
        }
    with written(path, force) as file:
        file.write(to_bytes(tensors, {"recipe": json.dumps(recipe, indent=1)}))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Read what :func:`save` wrote into ``model`` (and ``optimizer``), and return the recipe.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not those of ``model``; or an
            optimizer was given and the file holds none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            recipe: dict[str, Any] = json.loads((file.metadata() or {}).get("recipe", "{}"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: this is not a checkpoint ({error})") from None
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OPTIMIZER)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if optimizer is not None:
        state = {n.removeprefix(_OPTIMIZER): t for n, t in tensors.items() if n.startswith(_OPTIMIZER)}
        if not state:
            raise CheckpointError(f"{path}: training cannot go on from here: there is no optimizer state")
        _restore_optimizer(model, optimizer, state)
    return recipe


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        optimizer.state[parameters[name]][key] = tensor
