"""The engines that are part of PyTorch: eager mode, its compilers and CUDA graphs; and Torch-TensorRT."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.inference import aoti, precision
from wae.inference.batches import in_chunks
from wae.inference.cuda_graphs import captured
from wae.inference.programs import any_batch, as_bytes, exported, several
from wae.inference.winograd import replaced
from wae.models.network import on_two_streams
from wae.storage.files import full_disk_named
from wae_kernels import backends

from . import in_torchao
from .engine import Engine, Prepared, Run, Samples


class InPyTorch(Prepared):
    """A module and the function that compiles it.

    Args:
        module: in evaluation mode.
        inputs: see :meth:`Engine.make`.
        compile: takes the module, inputs, and whether the runner must take any number of images; returns a
            runner.
        packs: whether the runner holds its own copy of the weights. If so, the module's own are moved into a
            mapped file, unless they are on a GPU, where they are not copied.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[Tensor],
        compile: Callable[[nn.Module, Sequence[Tensor], bool], Run],
        packs: bool = False,
    ) -> None:
        self._module, self._compile, self._packs = module, compile, packs
        self._inputs = [torch.empty_like(x) for x in inputs]

    def for_batch(self, batch: int | None) -> Run:
        """See :class:`Prepared`."""
        inputs = [torch.zeros_like(x) for x in self._inputs]  # only their shapes and dtypes matter
        run = self._compile(self._module, inputs, batch is None)
        if self._packs and not inputs[0].is_cuda:
            run(*inputs)
            _leave_in_file(self._module)
        return run

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Write an AOTInductor package if the engine compiles, else a torch.export program."""
        if not self._packs:
            shapes = any_batch(self._module, inputs)
            program = exported(self._module, several(inputs), shapes)
            (folder / "network.pt2").write_bytes(as_bytes(program))
            return
        module = replaced(self._module) if self._compile is _winograd else self._module
        program = exported(module, inputs)
        (folder / "network.pt2").write_bytes(aoti.package(program))


class _Package(Prepared):
    """A package from :meth:`InPyTorch.save`: compiled for one batch size, it runs others in chunks of it."""

    def __init__(self, folder: Path, batch: int, computed: str) -> None:
        self._run: Run = torch._inductor.aoti_load_package(str(folder / "network.pt2"))
        self._batch, self._folder = batch, folder

    def for_batch(self, batch: int | None) -> Run:
        return self._run if batch == self._batch else in_chunks(self._run, self._batch)

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        (folder / "network.pt2").write_bytes((self._folder / "network.pt2").read_bytes())


class _Program(Prepared):
    """A torch.export program from :meth:`InPyTorch.save`."""

    def __init__(self, folder: Path, batch: int, computed: str) -> None:
        self._program = torch.export.load(folder / "network.pt2")
        self._module = self._program.module()

    def for_batch(self, batch: int | None) -> Run:
        return self._module

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        (folder / "network.pt2").write_bytes(as_bytes(self._program))


def _leave_in_file(module: nn.Module) -> None:
    """Move the weights of ``module`` into a memory-mapped file: they take no memory until they are read."""
    tensors = [*module.parameters(), *module.buffers()]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, full_disk_named(Path(name)):
        path = Path(name) / "weights.pt"
        torch.save([tensor.detach() for tensor in tensors], path)
        # on Linux a deleted file exists until the last mapping of it is gone
        for tensor, mapped in zip(tensors, torch.load(path, mmap=True), strict=True):
            tensor.data = mapped


def _prepared_by(
    compile: Callable[[nn.Module, Sequence[Tensor], bool], Run], packs: bool = False
) -> Callable[..., Prepared]:
    """The :attr:`Engine.prepare` of a PyTorch engine; see :class:`InPyTorch`. int8 is torchao's."""

    def prepare(
        module: nn.Module, inputs: Sequence[Tensor], wanted: str, samples: Samples, compared: Sequence[Tensor]
    ) -> Prepared:
        if wanted == "int8":
            return in_torchao.InTorchAO(*in_torchao.quantized(module, inputs, samples, compared))
        return InPyTorch(module, inputs, compile, packs)

    return prepare


def _eager(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    return module


_MANY_WEIGHTS = 2**20  # in one layer: about what the second-level cache holds
_QUIET = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}
"""Without these, tuning prints a table of times for each layer."""


def _on_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of ``guards`` compiled code checks in a call: only those on its inputs.

    The network does not change. By the others, a call within inference mode, with another number of threads
    or with another default dtype would compile everything again, without freezing, and the eighth would fail.
    """
    return [
        guard.guard_type == "SHAPE_ENV"
        or (guard.guard_type == "TENSOR_MATCH" and not isinstance(guard.value, nn.Parameter))
        for guard in guards
    ]


def _compile(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    def forward(*tensors: Tensor) -> Any:
        return module(*tensors)

    # PyTorch limits the recompilations of a code object, so each module gets its own.
    forward.__code__ = forward.__code__.replace()
    options: dict[str, Any] = {"guard_filter_fn": _on_inputs}
    on_gpu = inputs[0].is_cuda
    if on_gpu:
        options |= {"max_autotune": True, **_QUIET}
    elif any(isinstance(m, nn.Linear) and m.weight.numel() >= _MANY_WEIGHTS for m in module.modules()):
        # for few images a generated FC layer reads its weights from memory twice as fast as MKL's
        options |= {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN", **_QUIET}
    compiled: Run = torch.compile(
        forward, fullgraph=True, dynamic=None if dynamic else False, options=options
    )

    def run(*tensors: Tensor) -> Any:
        # Freezing turns the weights into constants, folds and packs them. It cannot be one of the options:
        # tracing must see the setting, and tracing may happen in any call.
        with torch._inductor.config.patch(freezing=True):
            return compiled(*tensors)

    if not dynamic:
        run(*inputs)
        # not by the option triton.cudagraphs, with which each calling thread has its own graphs
        return captured(compiled, inputs) if on_gpu else compiled
    inputs = several(inputs)
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    run(*inputs)
    return run  # a single image is compiled separately, at the first call with one


def _winograd(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    return _compile(replaced(module), inputs, dynamic)


def _cudagraphs(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    if dynamic:
        return module  # a graph is for one shape
    graphs: dict[tuple[torch.dtype, ...], Run] = {}

    def run(*tensors: Tensor) -> Any:
        dtypes = tuple(x.dtype for x in tensors)
        if dtypes not in graphs:  # images may be uint8 or floating point
            with torch.cuda.device_of(tensors[0]), on_two_streams(module):  # streams are the current device's
                graphs[dtypes] = captured(module, tensors)
        return graphs[dtypes](*tensors)

    run(*inputs)
    return run


def _tensorrt(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    importlib.import_module("torch_tensorrt")  # registers the backend
    # It computes in the module's dtypes: new versions refuse to be told the precision. By default it would
    # round float32 to tf32 whatever torch's setting is. Without the third option, PyTorch would run what
    # TensorRT does not accept.
    options: Any = {
        "use_explicit_typing": True,
        "disable_tf32": not backends.tf32_allowed(),
        "pass_through_build_failures": True,
        "guard_filter_fn": _on_inputs,
    }
    compiled: Run = torch.compile(module, backend="torch_tensorrt", dynamic=dynamic, options=options)
    return compiled


def _load_compiled(folder: Path, batch: int, computed: str) -> Prepared:
    load = in_torchao.load if computed == "int8" else _Package
    return load(folder, batch, computed)


_FLOATS = tuple(precision.DTYPES)

EAGER = Engine("eager", ("cpu", "cuda"), {}, _prepared_by(_eager), _Program)
COMPILE = Engine(
    "compile",
    ("cpu", "cuda"),
    {},
    _prepared_by(_compile, packs=True),
    _load_compiled,
    (*_FLOATS, "int8"),
    int8_packages={"torchao": "torchao"},
)
WINOGRAD = Engine(
    "winograd",
    ("cpu",),
    {},
    _prepared_by(_winograd, packs=True),
    _load_compiled,
    ("float32",),
    kernels=True,
)
CUDAGRAPHS = Engine("cudagraphs", ("cuda",), {}, _prepared_by(_cudagraphs), precisions=_FLOATS, whole=True)
TENSORRT = Engine(
    "tensorrt",
    ("cuda",),
    {"torch_tensorrt": "torch-tensorrt"},
    _prepared_by(_tensorrt),
    precisions=("float32", "bfloat16", "float16"),
)
