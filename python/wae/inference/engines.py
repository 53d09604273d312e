"""Engines for a network's forward pass: PyTorch itself, and the optimisers of others, behind one call.

::

    run = ENGINES["openvino"].build(module, inputs)
    outputs = run(*inputs)

An engine computes on the device of the inputs, with as many threads as torch has when it is built. What a
run returns may be overwritten by the next one, and runs of one engine must not overlap.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shutil
import tempfile
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.errors import WaeError
from wae.models.network import on_two_streams
from wae_kernels import backends

from . import aoti, precision, quantization, signal_stack
from .batches import filled
from .programs import any_batch, exported, several
from .quantization import ByteInput, Movement
from .winograd import replaced

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
        name: its key in :data:`ENGINES`.
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
    """

    name: str
    devices: tuple[str, ...]
    packages: dict[str, str]
    prepare: Callable[[nn.Module, Sequence[Tensor], str, Samples, Sequence[Tensor]], Prepared]
    load: Callable[[Path, int, str], Prepared] | None = None
    precisions: tuple[str, ...] = tuple(precision.DTYPES)
    foreign: bool = False
    kernels: bool = False
    whole: bool = False

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
        needed = self.packages | (quantization.PACKAGES[self.name] if wanted == "int8" else {})
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
        """Whatever fails within it is an EngineError."""
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the engines' own parts
                yield
        except EngineError:
            raise
        except Exception as error:  # whatever kind the engine has
            raise EngineError(f"{self.name} does not run this network: {error}") from error


# ------------------------------------------------------------------------------------------------- PyTorch


class InPyTorch(Prepared):
    """A module, and how PyTorch makes something fast of it.

    Args:
        module: in evaluation mode.
        inputs: see :meth:`Engine.make`.
        compile: takes the module, inputs, and whether any number of images is to be possible.
        packs: whether what ``compile`` makes has weights of its own: then the module's wait in a file.
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
        inputs = [torch.zeros_like(x) for x in self._inputs]  # of these only the form counts
        run = self._compile(self._module, inputs, batch is None)
        if self._packs:
            run(*inputs)
            _leave_in_file(self._module)
        return run

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Compiled by AOTInductor where the engine compiles; else a torch.export program."""
        if not self._packs:
            shapes = any_batch(inputs)
            program = exported(self._module, several(inputs), shapes)
            torch.export.save(program, folder / "network.pt2")
            return
        module = replaced(self._module) if self._compile is _winograd else self._module
        program = exported(module, inputs)
        (folder / "network.pt2").write_bytes(aoti.package(program))


class _Package(Prepared):
    """A network from :meth:`InPyTorch.save`: for one number of images, of which it takes others in turns."""

    def __init__(self, folder: Path, batch: int, computed: str) -> None:
        self._run: Run = torch._inductor.aoti_load_package(str(folder / "network.pt2"))
        self._batch, self._folder = batch, folder

    def for_batch(self, batch: int | None) -> Run:
        return self._run if batch == self._batch else in_turns(self._run, self._batch)

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        (folder / "network.pt2").write_bytes((self._folder / "network.pt2").read_bytes())


class _Program(Prepared):
    """The torch.export program that :meth:`InPyTorch.save` wrote."""

    def __init__(self, folder: Path, batch: int, computed: str) -> None:
        self._program = torch.export.load(folder / "network.pt2")
        self._module = self._program.module()

    def for_batch(self, batch: int | None) -> Run:
        return self._module

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        torch.export.save(self._program, folder / "network.pt2")


class InTorchAO(Prepared):
    """An int8 network of torchao's; its lowered form is for one number of images."""

    def __init__(self, program: torch.export.ExportedProgram, movements: Sequence[Movement]) -> None:
        self._program, self.movements = program, movements
        self._batch: int = 0
        self._run: Run | None = None

    def for_batch(self, batch: int | None) -> Run:
        """See :class:`Prepared`."""
        if batch is None:
            assert self._run is not None, "prepared for one number of images first"
            return in_turns(self._run, self._batch)
        self._batch = batch
        self._run = quantization.lowered(self._program, batch)
        return self._run

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """The quantized program: it is lowered when it is loaded."""
        torch.export.save(self._program, folder / "network.pt2")


def _load_torchao(folder: Path, batch: int, computed: str) -> Prepared:
    quantization.import_torchao()  # registers its operators
    return InTorchAO(torch.export.load(folder / "network.pt2"), ())


def in_turns(run: Run, size: int) -> Run:
    """``run``, which takes ``size`` images, for any number: in turns, the last filled up."""

    def any_number(*inputs: Tensor) -> Tensor:
        formats = [_format(x) for x in inputs]
        parts = []
        for turn in zip(*(x.split(size) for x in inputs), strict=True):
            full = [filled(x, size).clone(memory_format=y) for x, y in zip(turn, formats, strict=True)]
            parts.append(run(*full)[: len(turn[0])].clone())
        return torch.cat(parts)

    return any_number


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _leave_in_file(module: nn.Module) -> None:
    """Let the weights of ``module`` be a mapped file, which takes no memory until somebody reads them."""
    tensors = [*module.parameters(), *module.buffers()]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "weights.pt"
        torch.save([tensor.detach() for tensor in tensors], path)
        # on Linux the mapped file stays until nobody has it open
        for tensor, mapped in zip(tensors, torch.load(path, mmap=True), strict=True):
            tensor.data = mapped


def _in_pytorch(
    compile: Callable[[nn.Module, Sequence[Tensor], bool], Run], packs: bool = False
) -> Callable[..., Prepared]:
    """The :attr:`Engine.prepare` of an engine of PyTorch's."""

    def prepare(
        module: nn.Module, inputs: Sequence[Tensor], wanted: str, samples: Samples, compared: Sequence[Tensor]
    ) -> Prepared:
        if wanted == "int8":
            program, movements = quantization.by_torchao(module, inputs, samples, compared)
            return InTorchAO(program, movements)
        return InPyTorch(module, inputs, compile, packs)

    return prepare


def _eager(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    return module


_MANY_WEIGHTS = 2**20  # of one layer: about what the second-level cache holds
_QUIET = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}


def _torch_compile(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    def forward(*tensors: Tensor) -> Any:
        return module(*tensors)

    # PyTorch allows a code object some recompilations only: so each module gets one of its own.
    forward.__code__ = forward.__code__.replace()
    options: dict[str, Any] = {}
    if inputs[0].is_cuda:
        options = {"max_autotune": True, "triton.cudagraphs": not dynamic}
    elif any(isinstance(m, nn.Linear) and m.weight.numel() >= _MANY_WEIGHTS for m in module.modules()):
        # for few images a generated FC layer reads its weights from memory at twice the speed of MKL's
        options = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN", **_QUIET}
    compiled: Run = torch.compile(
        forward, fullgraph=True, dynamic=None if dynamic else False, options=options
    )

    def run(*tensors: Tensor) -> Any:
        # Freezing makes constants of the weights, folds and packs them. As one of the options it would come
        # too late: tracing must know of it, whenever it happens.
        with torch._inductor.config.patch(freezing=True):
            return compiled(*tensors)

    if not dynamic:
        run(*inputs)
        return compiled
    inputs = several(inputs)
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    run(*inputs)
    return run  # one image is compiled for by itself, when it comes


def _winograd(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    return _torch_compile(replaced(module), inputs, dynamic)


def _cudagraphs(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    if dynamic:
        return module  # a graph holds one shape
    held = [x.clone() for x in inputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device_of(held[0]), on_two_streams(module):  # streams are of the current device
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their algorithms before the capture
                module(*held)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            outputs = module(*held)

    def run(*tensors: Tensor) -> Any:
        if any(mine.dtype != given.dtype for mine, given in zip(held, tensors, strict=True)):
            return module(*tensors)  # images in another dtype than the graph was made for
        for mine, given in zip(held, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        return outputs

    return run


def _tensorrt(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    importlib.import_module("torch_tensorrt")  # registers the backend
    options: Any = {"enabled_precisions": {inputs[0].dtype}}
    compiled: Run = torch.compile(module, backend="torch_tensorrt", dynamic=dynamic, options=options)
    return compiled


# -------------------------------------------------------------------------------------------- through ONNX


def to_onnx(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool = False, **options: Any) -> Any:
    """``module`` as an ``onnx.ModelProto``; with ``dynamic``, for any number of images.

    ``options`` go to :func:`torch.onnx.export`.
    """
    shapes = any_batch(inputs) if dynamic else None
    inputs = several(inputs) if dynamic else inputs
    logger = logging.getLogger("onnx_ir")  # it warns of empty lists among an operator's attributes
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            exported(module, inputs, shapes), tuple(inputs), dynamo=True, verbose=False, **options
        )
        assert program is not None  # with dynamo=True
        proto = program.model_proto
        for value in program.model.graph.initializers.values():
            value.const_value = None  # onnxscript's global rules hold the last graph, and the weights with it
        return proto
    finally:
        logger.setLevel(level)


class InFile(Prepared):
    """A network in a file, which a foreign engine reads for the number of images that is wanted.

    Args:
        folder: where the file is.
        open: takes the folder, the number of images (None for any), and whether the engine may keep what it
            compiles in the folder.
        take_bytes: changes the file in the folder; see :meth:`Prepared.take_bytes`.
        movements: see :class:`Prepared`.
        temporary: whether the folder goes with this object.
    """

    def __init__(
        self,
        folder: Path,
        open: Callable[[Path, int | None, bool], Run],
        take_bytes: Callable[[Path], Sequence[ByteInput]] = lambda folder: (),
        movements: Sequence[Movement] = (),
        temporary: bool = False,
    ) -> None:
        self._folder, self._open, self.movements = folder, open, movements
        self._take_bytes = take_bytes
        self._temporary = temporary
        if temporary:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def for_batch(self, batch: int | None) -> Run:
        """See :class:`Prepared`."""
        return self._open(self._folder, batch, not self._temporary)

    def take_bytes(self) -> Sequence[ByteInput]:
        """See :class:`Prepared`."""
        return self._take_bytes(self._folder)

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Copy the file, and let the engine compile it once, so that it need not when it is loaded."""
        for path in self._folder.glob("network.*"):  # beside them a loaded one's folder has other files
            (folder / path.name).write_bytes(path.read_bytes())
        self._open(folder, inputs[0].shape[0], True)


def _prepare_onnxruntime(
    module: nn.Module, inputs: Sequence[Tensor], wanted: str, samples: Samples, compared: Sequence[Tensor]
) -> Prepared:
    network = to_onnx(module, inputs, True).SerializeToString()
    with _kept_folder() as folder:
        path = folder / "network.onnx"
        path.write_bytes(network)
        movements = quantization.by_onnxruntime(path, samples, compared) if wanted == "int8" else ()
        return InFile(folder, _open_onnxruntime, _bytes_for_onnxruntime, movements, temporary=True)


@contextmanager
def _kept_folder() -> Iterator[Path]:
    """A temporary folder that stays for an :class:`InFile`, unless making it fails."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _bytes_for_onnxruntime(folder: Path) -> Sequence[ByteInput]:
    return quantization.bytes_for_onnxruntime(folder / "network.onnx")


def _open_onnxruntime(folder: Path, batch: int | None, keep: bool) -> Run:
    return onnx_session(folder / "network.onnx", batch)


def onnx_session(path: Path, batch: int | None = None) -> Run:
    """The ONNX model at ``path`` in ONNX Runtime on the processor, for ``batch`` images; None for any."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # after a run its idle threads would keep the cores from our op
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*tensors: Tensor) -> Any:
        arrays = (x.contiguous().numpy() for x in tensors)
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        return _one_or_more([torch.from_numpy(x) for x in results])

    return run


@signal_stack.kept()
def _prepare_openvino(
    module: nn.Module, inputs: Sequence[Tensor], wanted: str, samples: Samples, compared: Sequence[Tensor]
) -> Prepared:
    import openvino

    model = openvino.Core().read_model(to_onnx(module, inputs, True).SerializeToString())
    movements: Sequence[Movement] = ()
    if wanted == "int8":
        model, movements = quantization.by_nncf(model, samples, compared)
    with _kept_folder() as folder:
        openvino.save_model(model, folder / "network.xml", compress_to_fp16=False)
        opened = partial(_open_openvino, wanted)
        return InFile(folder, opened, _bytes_for_openvino, movements, temporary=True)


@signal_stack.kept()
def _bytes_for_openvino(folder: Path) -> Sequence[ByteInput]:
    import openvino

    model = openvino.Core().read_model(folder / "network.xml")
    inputs = quantization.bytes_for_openvino(model)
    if inputs:
        # beside the old one, whose weights the model reads from its file
        openvino.save_model(model, folder / "bytes.xml", compress_to_fp16=False)
        for kind in ("xml", "bin"):
            (folder / f"bytes.{kind}").replace(folder / f"network.{kind}")
    return inputs


_HINTS = {"float32": "f32", "int8": "f32", "bfloat16": "bf16", "float16": "f16"}


@signal_stack.kept()
def _open_openvino(wanted: str, folder: Path, batch: int | None, keep: bool) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": _HINTS[wanted],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if keep:  # OpenVINO's own: it knows when what it compiled is of another version or processor
        settings["CACHE_DIR"] = str(folder / "compiled")
    core = openvino.Core()
    model = core.read_model(folder / "network.xml")
    if batch is not None:
        model.reshape({x.get_any_name(): [batch, *list(x.partial_shape)[1:]] for x in model.inputs})
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    # Where their sizes are known, the results get their place once. To make arrays and dictionaries of them
    # in each call takes 0.2 ms more: the network has left no Python in the processor's caches.
    known = all(x.partial_shape.is_static and x.element_type == openvino.Type.f32 for x in compiled.outputs)
    outputs = compiled.outputs if known else ()
    results = [torch.empty(tuple(x.shape), dtype=torch.float32) for x in outputs]
    for number, result in enumerate(results):
        request.set_output_tensor(number, openvino.Tensor(result.numpy(), shared_memory=True))

    def run(*tensors: Tensor) -> Any:
        arrays = [x.contiguous().numpy() for x in tensors]  # held here: OpenVINO does not keep them alive
        for number, array in enumerate(arrays):
            request.set_input_tensor(number, openvino.Tensor(array, shared_memory=True))
        found = request.infer(share_outputs=True)
        return _one_or_more(results or [torch.from_numpy(x) for x in found.values()])

    return run


def _one_or_more(results: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    return results if len(results) > 1 else results[0]


def _load_file(open: Callable[..., Run]) -> Callable[[Path, int, str], Prepared]:
    return lambda folder, batch, computed: InFile(folder, open)


def _load_compiled(folder: Path, batch: int, computed: str) -> Prepared:
    load = _load_torchao if computed == "int8" else _Package
    return load(folder, batch, computed)


_ONNX = {"onnx": "onnx", "onnxscript": "onnxscript"}
_FLOATS = tuple(precision.DTYPES)

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("eager", ("cpu", "cuda"), {}, _in_pytorch(_eager), _Program),
        Engine(
            "compile",
            ("cpu", "cuda"),
            {},
            _in_pytorch(_torch_compile, packs=True),
            _load_compiled,
            (*_FLOATS, "int8"),
        ),
        Engine(
            "winograd",
            ("cpu",),
            {},
            _in_pytorch(_winograd, packs=True),
            _load_compiled,
            ("float32",),
            kernels=True,
        ),
        Engine(
            "onnxruntime",
            ("cpu",),
            {**_ONNX, "onnxruntime": "onnxruntime"},
            _prepare_onnxruntime,
            _load_file(_open_onnxruntime),
            ("float32", "int8"),
            foreign=True,
        ),
        Engine(
            "openvino",
            ("cpu",),
            {**_ONNX, "openvino": "openvino"},
            _prepare_openvino,
            lambda folder, batch, computed: InFile(folder, partial(_open_openvino, computed)),
            tuple(_HINTS),
            foreign=True,
        ),
        Engine("cudagraphs", ("cuda",), {}, _in_pytorch(_cudagraphs), precisions=_FLOATS, whole=True),
        Engine(
            "tensorrt",
            ("cuda",),
            {"torch_tensorrt": "torch-tensorrt"},
            _in_pytorch(_tensorrt),
            precisions=("float32", "bfloat16", "float16"),
        ),
    )
}
"""All engines, by name."""
