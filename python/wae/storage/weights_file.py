"""Weights on disk: safetensors, with what made them as JSON in the file's metadata.

A checkpoint that training can go on from holds the optimizer's tensors too, under ``optimizer.``, and those
of a moving average of the weights, if there is one, under ``average.``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from wae.errors import WaeError

from .files import written

_OPTIMIZER, _AVERAGE = "optimizer.", "average."
WEIGHTS = Path(__file__).parent.parent / "weights"
"""The folder of the weights that come with this package."""


class CheckpointError(WaeError):
    """A checkpoint that cannot be used. The message names the file and says why."""


def save(
    path: Path,
    model: nn.Module,
    recipe: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    force: bool = False,
    average: nn.Module | None = None,
) -> None:
    """Write the model's state, and the optimizer's if given, to ``path``, whole or not at all.

    Args:
        recipe: what made these weights; anything that JSON can hold.
        force: replace the file that is there.
        average: the moving average of ``model``.

    Raises:
        FileExistsError: there is a file at ``path`` and ``force`` is false.
    """
    tensors = dict(model.state_dict())
    if optimizer is not None:
        tensors |= _prefixed(_OPTIMIZER, _optimizer_tensors(model, optimizer))
    if average is not None:
        tensors |= _prefixed(_AVERAGE, average.state_dict())
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with written(path, force) as file:
        file.write(to_bytes(tensors, {"recipe": json.dumps(recipe, indent=1)}))


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: nn.Module | None = None,
) -> dict[str, Any]:
    """Read what :func:`save` wrote into ``model`` (``optimizer``, ``average``), and return the recipe.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not those of ``model``; or an
            optimizer that keeps a state, or an average, was given and the file holds none.
    """
    tensors, recipe = _read(path)
    parts: dict[str, dict[str, Tensor]] = {"": {}, _OPTIMIZER: {}, _AVERAGE: {}}
    for name, tensor in tensors.items():
        prefix = next((p for p in (_OPTIMIZER, _AVERAGE) if name.startswith(p)), "")
        parts[prefix][name.removeprefix(prefix)] = tensor
    for wanted, prefix in ((optimizer, _OPTIMIZER), (average, _AVERAGE)):
        if wanted is not None and not parts[prefix] and not _keeps_nothing(wanted):
            kind = prefix.rstrip(".")
            raise CheckpointError(f"{path}: training cannot go on from here: there is no {kind} state")
    _fill(path, model, parts[""])
    if average is not None:
        _fill(path, average, parts[_AVERAGE])
    if optimizer is not None:
        try:
            _restore_optimizer(model, optimizer, parts[_OPTIMIZER])
        except KeyError as error:
            raise CheckpointError(f"{path}: its optimizer trained {error}, which the model has not") from None
    return recipe


def read_recipe(path: Path) -> dict[str, Any]:
    """What made the weights in ``path``. Raises CheckpointError where the file is missing or damaged."""
    return _read(path, tensors=False)[1]


def _fill(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load ``tensors``, those in the file at ``path``, into ``model``: all of it, and nothing else."""
    have, need = ({n: tuple(t.shape) for n, t in d.items()} for d in (tensors, model.state_dict()))
    wrong = [f"{name} is missing" for name in need if name not in have]
    wrong += [f"{name} is too much" for name in have if name not in need]
    wrong += [f"{n} is {have[n]}, not {need[n]}" for n in need if n in have and have[n] != need[n]]
    if wrong:
        more = f" (and {len(wrong) - 3} others)" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path}: its tensors are not those of the network: {', '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(tensors)


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, if wanted, and the recipe in a file."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, _recipe(file.metadata())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: this is not a checkpoint ({error})") from None


def _recipe(metadata: dict[str, str] | None) -> dict[str, Any]:
    recipe = json.loads((metadata or {}).get("recipe", "{}"))
    if not isinstance(recipe, dict):
        raise ValueError("its recipe is no JSON object")
    return recipe


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _keeps_nothing(wanted: torch.optim.Optimizer | nn.Module) -> bool:
    """Whether this is an optimizer without a state: SGD without momentum."""
    return isinstance(wanted, torch.optim.SGD) and not any(group["momentum"] for group in wanted.param_groups)


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = parameters[name]
        # Adam counts its steps on the processor, wherever the parameter is.
        optimizer.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)
