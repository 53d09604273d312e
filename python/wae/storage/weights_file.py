"""Saves and loads the tensors of an existing model: safetensors files, with a JSON record in the metadata.

:mod:`wae.storage.checkpoint` adds what is needed to build the model. Files are not trusted: shapes and dtypes
of tensors are checked before they are used, and no more memory is allocated than the file has bytes.

A checkpoint from which training can resume also holds the optimizer's tensors, under ``optimizer.``, those of
a moving average of the weights, if there is one, under ``average.``, and the record of its epochs, the bytes
of JSON Lines, as the tensor ``record.``, because it may become longer than a recipe.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from wae.errors import WaeError
from wae.models.finite import not_finite
from wae.wording import first_line, shown

from .files import no_file, written
from .signatures import recognised

MAX_RECIPE = 1 << 22
"""The most characters of a recipe: parsed, nested JSON takes many times its length in memory."""
_OPTIMIZER, _AVERAGE = "optimizer.", "average."
_RECORD = "record."  # no tensor of a model has a name that ends with a dot
WEIGHTS = Path(__file__).parent.parent / "weights"
"""The folder of the weights that come with this package."""
AUTOENCODER, CLASSIFIER = WEIGHTS / "autoencoder.safetensors", WEIGHTS / "fashion-mnist.safetensors"


class CheckpointError(WaeError):
    """A checkpoint cannot be used. The message names the file and says why."""


class Header(NamedTuple):
    """A file's recipe and the form of its tensors."""

    recipe: dict[str, Any]
    """How the weights were made; empty if the file does not say."""
    shapes: dict[str, tuple[int, ...]]
    """The shapes of the tensors, by name."""
    dtypes: set[str]
    """The dtypes of the tensors, by safetensors' names, such as "F32"."""

    @property
    def has_optimizer(self) -> bool:
        """Whether the file holds the state of an optimizer."""
        return any(name.startswith(_OPTIMIZER) for name in self.shapes)

    @property
    def of_training(self) -> bool:
        """Whether the file is what a training resumes from."""
        return self.has_optimizer or _RECORD in self.shapes


def save(
    path: Path | str,
    model: nn.Module,
    recipe: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    force: bool = False,
    average: nn.Module | None = None,
    record: bytes | bytearray = b"",
) -> None:
    """Write the states of a model, and of its optimizer and moving average, completely or not at all.

    Args:
        path: the file to write.
        model: the model; its state must consist of tensors.
        recipe: how the weights were made; anything that JSON can hold.
        optimizer: the optimizer of ``model``, or None.
        force: replace a file that is there.
        average: the moving average of ``model``, or None.
        record: JSON objects, each in a line, of any number: see :func:`read_record`.

    Raises:
        FileExistsError: there is a file at ``path`` and ``force`` is false.
        ValueError: the recipe is longer than :data:`MAX_RECIPE`.
        OSError: the file cannot be written.
    """
    text = json.dumps(recipe, indent=1)
    if len(text) > MAX_RECIPE:
        raise ValueError(
            f"recipe must have at most {MAX_RECIPE} characters as JSON, with all class names, got {len(text)}"
        )
    tensors = dict(model.state_dict())
    if optimizer is not None:
        tensors |= _prefixed(_OPTIMIZER, _optimizer_tensors(model, optimizer))
    if average is not None:
        tensors |= _prefixed(_AVERAGE, average.state_dict())
    if record:
        tensors[_RECORD] = torch.frombuffer(bytearray(record), dtype=torch.uint8)
    with written(Path(path), force) as file:
        file.write(to_bytes(_apart(tensors), {"recipe": text}))


def load(
    path: Path | str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: nn.Module | None = None,
) -> dict[str, Any]:
    """Load what :func:`save` wrote into ``model`` and, if given, ``optimizer`` and ``average``.

    Returns:
        The recipe.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not those of ``model``, or not
            finite; or an optimizer that keeps a state, or an average, is given and the file holds none.
            Nothing is changed then, unless tensors are not finite: that is noticed after they are loaded.
    """
    recipe = read_header(path).recipe
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name != _RECORD]  # noqa: SIM118 (not a dict)
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:  # a dtype that torch does not have
        raise CheckpointError(f"{path}: its tensors cannot be read ({error})") from None
    parts: dict[str, dict[str, Tensor]] = {"": {}, _OPTIMIZER: {}, _AVERAGE: {}}
    own = model.state_dict().keys()  # the network may have a child called "average"
    for name, tensor in tensors.items():
        prefix = next((p for p in (_OPTIMIZER, _AVERAGE) if name.startswith(p) and name not in own), "")
        parts[prefix][name.removeprefix(prefix)] = tensor
    for wanted, prefix in ((optimizer, _OPTIMIZER), (average, _AVERAGE)):
        if wanted is not None and not parts[prefix] and not _keeps_nothing(wanted):
            kind = prefix.rstrip(".")
            raise CheckpointError(f"{path}: training cannot resume from it: there is no {kind} state")
    _check(path, model, parts[""])
    if average is not None:
        _check(path, average, parts[_AVERAGE])
    if optimizer is not None:
        try:
            state = _optimizer_state(model, optimizer, parts[_OPTIMIZER])
        except ValueError as error:
            raise CheckpointError(f"{path}: its optimizer {error}") from None
        for parameter, entries in state.items():
            optimizer.state[parameter].update(entries)
    put(path, model, parts[""])
    if average is not None:
        put(path, average, parts[_AVERAGE])
    return recipe


def put(path: Path | str, model: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """``model.load_state_dict(tensors, strict)`` for tensors from the file at ``path``.

    A file has no versions of modules. The current ones are assumed, because MNASNet refuses tensors without.

    Raises CheckpointError if a number that was loaded is not finite: no command could use the network.
    """
    versioned = OrderedDict(tensors)
    setattr(versioned, "_metadata", getattr(model.state_dict(), "_metadata"))  # noqa: B009, B010 (not typed)
    model.load_state_dict(versioned, strict)
    if name := not_finite(model):
        raise CheckpointError(f"{path}: {name} has numbers that are not finite")


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The recipe of the weights in ``path``. Raises CheckpointError if the file is missing or damaged."""
    return read_header(path).recipe


def read_record(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in the record that :func:`save` wrote; none if the file has no record.

    Raises CheckpointError if the file is missing or damaged.
    """
    if _RECORD not in read_header(path).shapes:
        return
    try:
        with safe_open(path, framework="pt") as file:
            lines = io.BytesIO(file.get_tensor(_RECORD).numpy())
        for line in lines:  # one by one, because parsed JSON takes many times its length in memory
            yield _recipe(line.decode())
    except (SafetensorError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its record cannot be read ({first_line(error)})") from None


def mismatches(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], without_counters: bool = False
) -> list[str]:
    """How the names and shapes of tensors in a file differ from the ``wanted`` ones, for errors.

    The file may be ``without_counters`` of BatchNorms, as old files of PyTorch are.
    """
    have, need = ({n: tuple(t.shape) for n, t in tensors.items()} for tensors in (found, wanted))
    if without_counters:
        need = {n: s for n, s in need.items() if n in have or not n.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in need if name not in have]
    wrong += [f"{name} is unexpected" for name in have if name not in need]
    return wrong + [f"{n} is {have[n]}, not {need[n]}" for n in need if n in have and have[n] != need[n]]


def _check(path: Path | str, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless ``tensors``, from the file at ``path``, are exactly those of ``model``."""
    wrong = mismatches(tensors, model.state_dict())
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    wrong += [
        f"{name} is of {tensor.dtype}, not {kinds[name]}"
        for name, tensor in tensors.items()
        if name in kinds and not _fits(tensor.dtype, kinds[name])
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path}: its tensors are not those of the network: {', '.join(wrong[:3])}{more}"
        )


def _fits(dtype: torch.dtype, wanted: torch.dtype) -> bool:
    return dtype == wanted or (dtype in _FLOATS and wanted.is_floating_point)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_header(path: Path | str) -> Header:
    """The metadata of the file at ``path``. Raises CheckpointError if the file is missing or damaged."""
    path = Path(path)
    if why := no_file(path):
        raise CheckpointError(f"{path}: {why}")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {part.get_dtype() for part in slices.values()}
            return Header(_recipe((file.metadata() or {}).get("recipe", "{}")), shapes, dtypes)
    except (SafetensorError, OSError) as error:
        what = recognised(path)
        why = f"it is {what}" if what else str(error)
        raise CheckpointError(f"{path}: this is not a checkpoint ({why})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: its {error}") from None


def _recipe(text: str) -> dict[str, Any]:
    """The recipe in its JSON ``text``. Raises ValueError if there is none."""
    if len(text) > MAX_RECIPE:
        raise ValueError(f"recipe must have at most {MAX_RECIPE} characters, got {len(text)}")
    try:
        recipe = json.loads(text)
    except RecursionError:
        raise ValueError("recipe is nested too deeply") from None
    except ValueError as error:  # no JSON, or a number of too many digits
        raise ValueError(f"recipe is no JSON ({error})") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe must be a JSON object, got {shown(recipe)}")
    return recipe


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, contiguous and without shared memory.

    safetensors refuses tensors that share memory, such as those of a layer that is used twice.
    """
    memory: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        if own.untyped_storage().data_ptr() in memory:
            own = own.clone()
        memory.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _keeps_nothing(wanted: torch.optim.Optimizer | nn.Module) -> bool:
    """Whether this is an optimizer without a state, SGD without momentum."""
    return isinstance(wanted, torch.optim.SGD) and not any(group["momentum"] for group in wanted.param_groups)


def _optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> dict[nn.Parameter, dict[str, Tensor]]:
    """The state of ``optimizer`` for each parameter. Raises ValueError if ``tensors`` are another's."""
    parameters = dict(model.named_parameters())
    wanted = next((keys for kind, keys in _STATES.items() if isinstance(optimizer, kind)), None)
    state: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            raise ValueError(f"trained '{name:.200}', which the model has not")
        shape = () if key == "step" else parameters[name].shape
        shapes = (shape,) if wanted else (shape, ())  # in an unknown optimizer's state any may be a scalar
        if tensor.dtype not in _FLOATS or tensor.shape not in shapes:
            raise ValueError(f"has for {name} a {key:.40} of {tensor.dtype} and shape {tuple(tensor.shape)}")
        # Adam counts its steps on the CPU, wherever the parameter is.
        placed = tensor.clone() if key == "step" else _placed_like(parameters[name], tensor)
        state.setdefault(name, {})[key] = placed
    for name, entries in state.items():
        if wanted is not None and set(entries) != wanted:
            got = ", ".join(sorted(entries))
            raise ValueError(f"is not a {type(optimizer).__name__}: for {name} it kept {got:.200}")
    return {parameters[name]: entries for name, entries in state.items()}


def _placed_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` on the device of ``parameter``, with its strides if they have one shape.

    With other strides a GPU updates the parameters one by one instead of all at once. ``tensor`` itself would
    keep the file mapped, and so on the disk after it is replaced.
    """
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


_STATES = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},  # and AdamW, which derives from it
}
"""The names of the state that each optimizer keeps for a parameter."""
