"""The interface of an engine, and of a network prepared for one."""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.errors import WaeError
from wae.inference import precision
from wae.inference.one_thread import ONE_THREAD
from wae.storage.files import full_disk
from wae_kernels import backends

from .int8 import ByteInput, Simulation

Run = Callable[..., Any]
"""Takes the module's inputs and returns what the module returns: one tensor or several."""

Samples = Sequence[Sequence[Tensor]]
"""Batches of the module's inputs, a few images each, from which the scales of int8 are taken."""


class EngineError(WaeError, RuntimeError):
    """An engine cannot be used: it is not installed, does not run here, or does not accept the network."""


class Prepared(ABC):
    """A network in the form that an engine runs."""

    simulation: Simulation | None = None
    """Of an int8 network until it is checked: what it should compute of the inputs it is compared on."""

    @abstractmethod
    def for_batch(self, batch: int | None) -> Run:
        """Build a runner for ``batch`` images, or for any number of images if ``batch`` is None."""

    def take_bytes(self) -> Sequence[ByteInput]:
        """Make the network take its inputs as bytes, instead of float32 that the engine quantizes first.

        Call it before :meth:`for_batch`. Returns the description of each input; an empty sequence means that
        the engine cannot take bytes, and nothing has changed.
        """
        return ()

    @abstractmethod
    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Write the files that :attr:`Engine.load` needs into ``folder``.

        ``inputs`` have the dtypes, shapes and memory formats that the loaded network will be called with.
        """


@dataclass(frozen=True)
class Engine:
    """One way to run a module.

    Attributes:
        name: its key in :data:`wae.inference.engines.ENGINES`.
        devices: the device types it computes on.
        packages: the modules it imports to run networks, mapped to the names that pip installs.
        prepare: takes the module, its inputs, the precision and, for int8, samples of the inputs and further
            inputs on which the layers are compared.
        load: takes the folder that :meth:`Prepared.save` wrote, the batch size and the precision. None if
            the engine cannot save a network.
        precisions: the precisions it can compute in; see :mod:`wae.inference.precision`.
        foreign: whether the engine is not part of PyTorch. Such an engine copies tensors that are not
            contiguous, has threads of its own, and takes and returns float32 in every precision.
        kernels: whether it needs our compiled kernels.
        whole: whether it runs the encoder too. Its inputs are then the images, in any dtype.
        converters: the modules that ``prepare`` also imports, mapped as ``packages``.
        int8_packages: those that ``prepare`` also imports for int8, and ``load`` too unless it is foreign.
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
    converters: Mapping[str, str] = field(default_factory=dict)
    int8_packages: Mapping[str, str] = field(default_factory=dict)

    def why_not(self, device: torch.device | str, wanted: str | None = None) -> str | None:
        """A sentence that says why this engine cannot run on ``device``; None if it can.

        Args:
            device: the device to compute on.
            wanted: the precision to compute in; None for any precision.
        """
        kind = torch.device(device).type
        if kind not in self.devices:
            return f"{self.name} runs on {' or '.join(self.devices)}, not on {kind}"
        if wanted is not None and wanted not in self.precisions:
            return f"{self.name} computes in {' or '.join(self.precisions)}, not in {wanted}"
        if wanted == "int8" and kind != "cpu":
            return f"{self.name} computes in int8 on cpu only, not on {kind}"
        of_int8 = self.int8_packages if wanted == "int8" else {}
        if missing := _missing({**self.converters, **self.packages, **of_int8}):
            return f"{self.name} {missing}"
        if self.kernels and not backends.backend_for(device).startswith("cpu"):
            return f"{self.name} needs the compiled kernels: `wae info` says why they do not run"
        return None

    def why_not_load(self, wanted: str) -> str | None:
        """A sentence that says why this engine cannot run what it saved in the precision ``wanted``, or None.

        A foreign engine needs no package that converts or quantizes networks.
        """
        of_int8 = self.int8_packages if wanted == "int8" and not self.foreign else {}
        return replace(self, converters={}, int8_packages=of_int8).why_not("cpu", wanted)

    def input_dtype(self, computed: str) -> torch.dtype:
        """The dtype of the engine's inputs when it computes in the precision ``computed``."""
        return torch.float32 if self.foreign or computed == "int8" else precision.DTYPES[computed]

    def make(
        self,
        module: nn.Module,
        inputs: Sequence[Tensor],
        wanted: str | None = None,
        samples: Samples = (),
        compared: Sequence[Tensor] = (),
    ) -> Prepared:
        """Prepare ``module``, which is in evaluation mode, for this engine.

        Args:
            module: takes ``inputs`` and returns one tensor or several. It must not change afterwards.
            inputs: the network is prepared for their dtypes, shapes and memory formats.
            wanted: the precision to compute in; None for the dtype of the inputs.
            samples: batches of inputs that give the scales of int8.
            compared: inputs on which the int8 network is compared with the module.

        Raises:
            EngineError: the engine is not installed, does not run on the inputs' device or in this
                precision, or does not accept the module.
        """
        wanted = wanted or precision.name_of(inputs[0].dtype)
        reason = self.why_not(inputs[0].device, wanted)
        if reason is not None:
            raise EngineError(reason)
        with self.errors():
            return self.prepare(module, inputs, wanted, samples, compared)

    def open(self, prepared: Prepared, batch: int | None, inputs: Sequence[Tensor]) -> Run:
        """Build a runner of ``prepared`` and run it once, on ``inputs``.

        Args:
            prepared: what :meth:`make` returned.
            batch: the number of images in a call; None for any number.
            inputs: the module's inputs.

        Raises:
            EngineError: the engine cannot build or run it.
        """
        with self.errors():
            run = prepared.for_batch(batch)
            run(*inputs)  # some engines finish their preparation in the first call
            return run

    def build(self, module: nn.Module, inputs: Sequence[Tensor], dynamic: bool = False) -> Run:
        """:meth:`make` and :meth:`open` in one call.

        The runner takes the number of images in ``inputs``, or any number if ``dynamic`` is true.
        """
        return self.open(self.make(module, inputs), None if dynamic else inputs[0].shape[0], inputs)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Run the block without gradients; see :func:`as_engine_error` for its exceptions."""
        with torch.no_grad(), as_engine_error(f"{self.name} does not run this network"):
            yield


def _missing(packages: Mapping[str, str]) -> str:
    """Which of the ``packages`` are not installed, as the end of a sentence; empty if all are."""
    missing = [pip for module, pip in packages.items() if importlib.util.find_spec(module) is None]
    return f"needs packages that are not installed: `pip install {' '.join(missing)}`" if missing else ""


@contextmanager
def as_engine_error(what: str) -> Iterator[None]:
    """Turn every exception in the block into an EngineError that begins with ``what``, and hide warnings.

    An EngineError stays as it is, and so does the OSError of a full disk, which is not the network's fault.
    Such blocks run in one thread at a time: see :data:`wae.inference.one_thread.ONE_THREAD`.
    """
    try:
        with ONE_THREAD, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # engines and exporters warn about their own internals
            yield
    except EngineError:
        raise
    except Exception as error:  # engines and exporters raise exceptions of any kind
        if full := full_disk(error):
            raise full from None
        raise EngineError(f"{what}: {str(error).strip() or type(error).__name__}") from error
