"""What an engine is."""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.errors import WaeError
from wae.inference import precision
from wae.storage.files import full_disk
from wae_kernels import backends

from .int8 import ByteInput, Movement

Run = Callable[..., Any]
"""Takes the module's inputs, and returns what the module returns: a tensor, or several."""

Samples = Sequence[Sequence[Tensor]]
"""Inputs of the module, a few images each, that int8's scales come from."""


class EngineError(WaeError, RuntimeError):
    """An engine cannot be used here: it is missing, or it does not take the network."""


class Prepared(ABC):
    """A network in an engine."""

    movements: Sequence[Movement] = ()
    """In int8: how far each layer's results moved, the farthest first."""

    @abstractmethod
    def for_batch(self, batch: int | None) -> Run:
        """Builds a runner for ``batch`` images; for any number of them with None."""

    def take_bytes(self) -> Sequence[ByteInput]:
        """From now on take bytes, and no float32 that the engine makes bytes of first.

        To be called before :meth:`for_batch`. Returns what the inputs are then; nothing where it cannot be.
        """
        return ()

    @abstractmethod
    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Write into ``folder`` what :attr:`Engine.load` needs, for inputs like these."""


@dataclass(frozen=True)
class Engine:
    """One way to run a module.

    Attributes:
        name: its key in :data:`wae.inference.engines.ENGINES`.
        devices: types of device it computes on.
        packages: what it imports, by the name that pip knows.
        prepare: takes the module, inputs, the precision, and, for int8, samples of inputs and further
            inputs on which the layers are compared.
        load: takes the folder that :meth:`Prepared.save` wrote, the batch, and the precision.
        precisions: that it can compute in; see :mod:`.precision`.
        foreign: whether it is not PyTorch's: it copies all but contiguous tensors, has its own threads, and
            takes and gives float32 whatever it computes in.
        kernels: whether it needs our compiled kernels.
        whole: whether it runs the encoder as well: its inputs are the images, of any dtype.
        int8_packages: what it imports for int8 beside them.
    """

    name: str
    devices: tuple[str, ...]
    packages: Mapping[str, str]
    prepare: Callable[[nn.Module, Sequence[Tensor], str, Samples, Sequence[Tensor]], Prepared]
    load: Callable[[Path, int, str], Prepared] | None = None
    precisions: tuple[str, ...] = tuple(precision.DTYPES)
    foreign: bool = False
    kernels: bool = False
    whole: bool = False
    int8_packages: Mapping[str, str] = field(default_factory=dict)

    def why_not(self, device: torch.device | str, wanted: str | None = None) -> str | None:
        """The reason why this engine cannot run on ``device``, for a person to read; None if nothing is.

        Args:
            device: to compute on.
            wanted: the precision to compute in; None for any.
        """
        kind = torch.device(device).type
        if kind not in self.devices:
            return f"{self.name} runs on {' or '.join(self.devices)}, not on {kind}"
        if wanted is not None and wanted not in self.precisions:
            return f"{self.name} computes in {' or '.join(self.precisions)}, not in {wanted}"
        if wanted == "int8" and kind != "cpu":
            return f"{self.name} computes in int8 on cpu only, not on {kind}"
        needed = {**self.packages, **(self.int8_packages if wanted == "int8" else {})}
        missing = [pip for module, pip in needed.items() if importlib.util.find_spec(module) is None]
        if missing:
            return f"{self.name} needs packages that are not installed: `pip install {' '.join(missing)}`"
        if self.kernels and not backends.backend_for(device).startswith("cpu"):
            return f"{self.name} needs the compiled kernels: `wae info` tells why they do not run"
        return None

    def input_dtype(self, computed: str) -> torch.dtype:
        """The dtype of the inputs for a module that is to be computed in this precision."""
        return torch.float32 if self.foreign or computed == "int8" else precision.DTYPES[computed]

    def make(
        self,
        module: nn.Module,
        inputs: Sequence[Tensor],
        wanted: str | None = None,
        samples: Samples = (),
        compared: Sequence[Tensor] = (),
    ) -> Prepared:
        """Bring ``module``, in evaluation mode, into the engine.

        Args:
            module: takes ``inputs`` and returns a tensor or several. It must not change afterwards.
            inputs: their dtypes, shapes and memory formats are what the result is made for.
            wanted: the precision to compute in; None for that of the inputs.
            samples: of inputs, for int8.
            compared: inputs on which int8's layers are compared with the module's.

        Raises:
            EngineError: the engine is not installed, does not run on the inputs' device or in this
                precision, or refuses the module.
        """
        wanted = wanted or precision.name_of(inputs[0].dtype)
        reason = self.why_not(inputs[0].device, wanted)
        if reason is not None:
            raise EngineError(reason)
        with self.errors():
            return self.prepare(module, inputs, wanted, samples, compared)

    def open(self, prepared: Prepared, batch: int | None, inputs: Sequence[Tensor]) -> Run:
        """A runner of ``prepared`` for ``batch`` images, None for any number; it is tried on ``inputs``.

        Raises EngineError where the engine refuses it.
        """
        with self.errors():
            run = prepared.for_batch(batch)
            run(*inputs)  # some prepare more at the first call
            return run

    def build(self, module: nn.Module, inputs: Sequence[Tensor], dynamic: bool = False) -> Run:
        """:meth:`make` and :meth:`open` in one: for the number of images in ``inputs``, or for any."""
        return self.open(self.make(module, inputs), None if dynamic else inputs[0].shape[0], inputs)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Whatever fails within it is an EngineError, but for a full disk."""
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the engines' own parts
                yield
        except EngineError:
            raise
        except Exception as error:  # whatever kind the engine has
            if full := full_disk(error):  # which no network is to blame for
                raise full from None
            raise EngineError(f"{self.name} does not run this network: {error}") from error
