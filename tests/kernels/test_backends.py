"""Which backend runs, why, and how it is chosen."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch
from cases import Cell, arguments_of, as_tuple, needs_library, recorded
from programs import run_program
from torch import Tensor

from wae_kernels import _load, backends
from wae_kernels.parameters import KERNEL_WIDTH

USABLE = [b.name for b in backends.available() if b.available]
UNUSABLE = [b.name for b in backends.available() if not b.available]


def run_python(program: str, backend: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WAE_BACKEND"}
    if backend is not None:
        environment["WAE_BACKEND"] = backend
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )


def convolution_calls(device: str) -> int:
    """The number of calls of PyTorch's convolution in an encode on this device."""
    arguments = arguments_of("encode", device=device)
    with recorded() as profile:
        torch.ops.wae.encode(*arguments)
    return sum(event.name == "aten::conv2d" for event in profile.events())


def test_every_backend_is_listed_with_a_reason() -> None:
    listed = backends.available()
    assert [b.name for b in listed if b.name.startswith("cpu:")] == ["cpu:avx512", "cpu:avx2", "cpu:portable"]
    assert listed[-1].name == "reference"
    assert listed[-1].available
    assert all(b.reason for b in listed)


def test_selected_backend_runs(cell: Cell) -> None:
    assert backends.selected() == cell.name
    assert backends.backend_for(cell.device) == cell.name
    assert convolution_calls(cell.device) == (5 if cell.name == "reference" else 0)


def test_auto_runs_the_best_available_backend() -> None:
    with backends.use("auto"):
        assert backends.backend_for("cpu") == next(name for name in USABLE if name not in ("cuda", "triton"))


@needs_library
def test_cpu_runs_the_best_compiled_kernels() -> None:
    with backends.use("cpu"):
        assert backends.backend_for("cpu") == USABLE[0]


@pytest.mark.parametrize("name", USABLE)
def test_reference_runs_if_there_is_no_kernel(name: str) -> None:
    with backends.use(name):
        assert backends.backend_for("cpu", torch.float64) == "reference"
        assert backends.backend_for("cpu", torch.float32, 8) == "reference"
        assert backends.backend_for("meta") == "reference"


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_follows_the_setting_of_torch(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert backends.tf32_allowed() == allowed
    assert [backends._TF32_CALLBACK() for _ in range(2)] == [allowed] * 2


def test_tf32_is_asked_in_python_if_torch_renames_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_get_fp32_precision_getter")
    for allowed in (True, False):
        monkeypatch.setattr(backends, "tf32_allowed", lambda allowed=allowed: allowed)
        assert backends._tf32_callback()() == allowed


def test_old_name_of_the_kernel_width_warns() -> None:
    with pytest.warns(DeprecationWarning, match="WIDTH is .*parameters.KERNEL_WIDTH now") as warned:
        assert backends.WIDTH == KERNEL_WIDTH
    assert warned[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'HEIGHT'"):
        _ = backends.HEIGHT


def test_use_restores_the_previous_choice() -> None:
    before = backends.selected()
    with backends.use("reference"):
        with backends.use(USABLE[0]):
            assert backends.selected() == USABLE[0]
        assert backends.selected() == "reference"
        with pytest.raises(KeyError), backends.use("auto"):
            raise KeyError
        assert backends.selected() == "reference"
    assert backends.selected() == before


# ----------------------------------------------------------------------------------- threads and tasks


@functools.cache
def known_outputs() -> tuple[list[Tensor], dict[str, Tensor]]:
    """Arguments of an encode, and its outputs on two backends, which differ in their rounding."""
    arguments, outputs = arguments_of("encode", size=(40, 60)), {}
    for name in ("reference", USABLE[0]):
        with backends.use(name):
            outputs[name] = torch.cat(torch.ops.wae.encode(*arguments), 1)
    return arguments, outputs


def running_backend() -> str:
    """The one of the two backends that runs an encode now; an empty string if neither does."""
    arguments, outputs = known_outputs()
    out = torch.cat(torch.ops.wae.encode(*arguments), 1)
    return next((name for name, known in outputs.items() if torch.equal(out, known)), "")


def test_the_two_backends_round_differently() -> None:
    _, outputs = known_outputs()
    assert USABLE == ["reference"] or not torch.equal(*outputs.values())


def test_use_is_local_to_a_thread() -> None:
    """Two threads with overlapping blocks do not see each other's choice, and restore their own."""
    both = threading.Barrier(2, timeout=60)
    backends.select("auto")  # whatever WAE_BACKEND is
    known_outputs()

    def work(name: str, leaves_first: bool) -> tuple[str, str]:
        with backends.use(name):
            both.wait()
            seen = backends.selected(), running_backend()
            both.wait()
            if not leaves_first:
                both.wait()
        if leaves_first:
            both.wait()
        return seen

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(work, *a) for a in (("reference", True), (USABLE[0], False))]
        seen = [result.result() for result in results]
    assert seen == [("reference", "reference"), (USABLE[0], USABLE[0])]
    assert backends.selected() == "auto"
    assert running_backend() == USABLE[0]


def test_new_thread_starts_with_the_choice_of_the_process() -> None:
    backends.select("auto")  # whatever WAE_BACKEND is
    with backends.use("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(backends.selected).result() == "auto"
    backends.select("reference")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(backends.selected).result() == "reference"


def test_use_overrides_select() -> None:
    with backends.use("reference"):
        backends.select(USABLE[0])
        assert backends.selected() == "reference"
    assert backends.selected() == USABLE[0]


def test_use_is_local_to_a_task() -> None:
    async def work(name: str, mine: asyncio.Event, other: asyncio.Event) -> tuple[str, str]:
        with backends.use(name):
            mine.set()
            await other.wait()
            return backends.selected(), running_backend()

    async def both() -> list[tuple[str, str]]:
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(work("reference", a, b), work(USABLE[0], b, a))

    before = backends.selected()
    assert asyncio.run(both()) == [("reference", "reference"), (USABLE[0], USABLE[0])]
    assert backends.selected() == before


def test_task_keeps_the_choice_of_the_block_that_created_it() -> None:
    async def later(event: asyncio.Event) -> tuple[str, str]:
        await event.wait()
        return backends.selected(), running_backend()

    async def outlive() -> tuple[str, str]:
        event = asyncio.Event()
        with backends.use("reference"):
            task = asyncio.create_task(later(event))
        event.set()
        return await task

    assert asyncio.run(outlive()) == ("reference", "reference")


def test_library_asks_only_while_a_choice_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a block, and as long as a task has a copy of its choice. The default is that of the process."""
    gc.collect()  # drops choices that the traceback of a failed test keeps alive
    asked: list[str | None] = []
    library = SimpleNamespace(
        ask=asked.append, function=lambda default: default, answer=str, here=ContextVar("here")
    )
    monkeypatch.setattr(backends, "_LIBRARIES", [library])
    backends.select("auto")  # whatever WAE_BACKEND is
    assert asked[-1] is None
    with backends.use("reference"):
        assert (asked[-1], library.here.get()) == ("auto", "reference")
        backends.select("reference")
        assert asked[-1] == "reference"
        of_a_task = copy_context()
    assert asked[-1] == "reference"
    assert library.here.get(None) is None
    assert of_a_task.run(library.here.get) == "reference"
    del of_a_task
    with backends.use("auto"):
        pass
    assert asked[-1] is None


INTERRUPTED = """
import random, signal, sys, torch
from cases import arguments_of
from wae_kernels import backends

class Interrupt(BaseException):
    pass

def interrupt(number, frame):
    raise Interrupt

ignored, caught = [], 0
sys.unraisablehook = ignored.append
signal.signal(signal.SIGALRM, interrupt)
arguments = arguments_of("encode", size=(2, 2))
with backends.use("cpu"):
    for _ in range(500):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 3e-4))
            while not ignored:
                torch.ops.wae.encode(*arguments)
        except Interrupt:
            caught += 1
print(caught, len(ignored))
"""


@needs_library
@pytest.mark.slow
def test_a_signal_handler_may_raise_while_the_library_asks() -> None:
    """Ctrl-C does. If it were ignored, the library would look for its kernels at a wrong address."""
    result = run_program(INTERRUPTED, check=False)
    assert (result.returncode, result.stdout) == (0, "500 0\n"), result.stderr


def test_an_interruption_anywhere_in_a_block_leaves_no_choice_behind() -> None:
    """Nor the name of one choice beside the kernels of another."""

    class Interrupt(BaseException):
        pass

    def choose(left: int) -> bool:
        """Enter and leave a block; raise when a signal handler may for the ``left``-th time. Did it raise?"""

        def profile(_frame: object, event: str, _: object) -> None:
            nonlocal left
            left -= event in ("call", "c_return")
            if left == 0:
                raise Interrupt

        sys.setprofile(profile)
        try:
            with backends.use("reference"):
                pass
        except Interrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    backends.select("auto")  # whatever WAE_BACKEND is
    known_outputs()
    before, moments = sys.getprofile(), 0
    while choose(moments + 1):
        moments += 1
        assert (backends.selected(), running_backend()) == ("auto", USABLE[0]), moments
    sys.setprofile(before)
    assert moments > 10


def test_what_libraries_call_executes_no_python_code() -> None:
    """A signal handler could raise in it, which ctypes only prints, and the library would take any answer."""
    default = backends.selected()
    callbacks = [backends._TF32_CALLBACK, *(library.function(default) for library in backends._LIBRARIES)]
    executed: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: executed.append(frame.f_code.co_name) if event == "call" else None)
    for callback in callbacks:
        callback()  # type: ignore[operator]
    sys.setprofile(before)
    assert not executed


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_backward_pass_runs_on_the_backend_of_its_forward_pass(op: str) -> None:
    arguments = arguments_of(op, requires_grad=True)
    with backends.use("reference"):
        outputs = as_tuple(getattr(torch.ops.wae, op)(*arguments))
    with recorded() as profile:
        sum(out.sum() for out in outputs).backward()
    assert any(event.name == "aten::convolution_backward" for event in profile.events())


# ----------------------------------------------------------------------------------------- the GPU driver

NO_DRIVER = """
import sys, torch

def touched(*args, **kwargs):
    raise AssertionError("the CUDA driver was touched")

for name in ("_cuda_getDeviceCount", "_cuda_init", "_cuda_getDevice", "_cuda_setDevice"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, touched)
for name in ("is_available", "get_device_capability", "get_device_name", "get_device_properties", "init"):
    setattr(torch.cuda, name, touched)
"""

WITH_A_GPU = """
torch.cuda._device_count_nvml = lambda: 1
torch.backends.cuda.is_built = lambda: True
"""

WITHOUT_A_GPU = "torch.cuda._device_count_nvml = lambda: 0\n"


@pytest.mark.parametrize("machine", ["", WITH_A_GPU], ids=["this machine", "with a GPU"])
@pytest.mark.slow
def test_driver_is_not_touched_before_the_first_tensor(machine: str) -> None:
    program = (
        NO_DRIVER
        + machine
        + dedent("""
        import wae_kernels
        from wae_kernels import backends
        from wae.cli import main
        backends.available()
        backends.select("auto")
        backends.backend_for("cuda")
        with backends.use("reference"):
            pass
        assert main(["info"]) in (0, None)
        assert not torch.cuda.is_initialized()
        print("untouched", [b.available for b in backends.available() if b.name == "triton"])
    """)
    )
    result = run_python(program, None)
    assert "untouched" in result.stdout, result.stderr
    if machine and importlib.util.find_spec("triton"):
        assert "untouched [True]" in result.stdout


@pytest.mark.slow
def test_environment_selects_a_gpu_backend_without_the_driver() -> None:
    program = NO_DRIVER + WITH_A_GPU + "import wae_kernels; print(wae_kernels.backends.selected())"
    assert run_python(program, "triton").stdout == "triton\n"
    program = NO_DRIVER + WITHOUT_A_GPU + "import wae_kernels"
    assert "backend must be one of auto" in run_python(program, "triton").stderr


# ------------------------------------------------------------------------------------------ other machines


@pytest.mark.parametrize(
    ("counted", "file", "seen"),
    [
        (2, "", True),
        (0, "/dev/nvidiactl", False),
        (-1, "/dev/nvidiactl", True),
        (-1, "/dev/dxg", True),
        (-1, "/dev/kfd", True),
        (-1, "", False),
    ],
)
@pytest.mark.parametrize("amd", [False, True], ids=["NVIDIA", "AMD"])
def test_gpu_is_detected_without_the_driver(
    counted: int, file: str, seen: bool, amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The management library counts the GPUs; if it cannot, the files of a driver decide."""
    monkeypatch.setattr(torch.version, "hip", "6.0" if amd else None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, f"_device_count_{'amdsmi' if amd else 'nvml'}", lambda: counted)
    monkeypatch.setattr(torch.cuda, f"_device_count_{'nvml' if amd else 'amdsmi'}", pytest.fail)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == file)
    for built in (True, False):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        assert (backends.gpu() is not None) == (seen and built)


def test_gpu_has_the_name_from_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    files: list[Path] = []
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(files))
    assert backends.gpu() == "the GPU"  # for example on Windows
    for name in ("b", "a"):
        (tmp_path / name).write_text(f"Model: \t\t NVIDIA {name}\nIRQ:   \t\t 7\n", encoding="utf-8")
        files.append(tmp_path / name)
    assert backends.gpu() == "NVIDIA a"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "the current one")
    assert backends.gpu() == "the current one"


@pytest.mark.parametrize(
    ("capability", "hip", "runs"),
    [
        ((7, 0), None, []),
        ((7, 5), None, ["cuda"]),
        ((8, 0), None, ["cuda", "triton"]),
        ((7, 0), "6.0", ["cuda", "triton"]),  # AMD numbers its GPUs differently
        (None, None, []),
    ],
    ids=["7.0", "7.5", "8.0", "AMD", "no GPU"],
)
def test_backends_available_on_a_gpu(
    capability: tuple[int, int] | None, hip: str | None, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_load, "CUDA", _load.Loaded(SimpleNamespace(), ""))
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    monkeypatch.setattr(backends, "_sees_gpu", lambda: capability is not None)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a test GPU")
    found = {b.name: b for b in backends.available() if b.name in ("cuda", "triton")}
    assert [name for name, backend in found.items() if backend.available] == runs
    for name, oldest in (("cuda", "7.5"), ("triton", "8.0")):
        reason = "a test GPU" if name in runs else f"older than compute capability {oldest}"
        assert (reason if capability else "there is no GPU here") in found[name].reason


def test_select_tells_each_library_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    cpu = SimpleNamespace(wae_cpu_supports=lambda name: True, wae_cpu_select=calls.append)
    cuda = SimpleNamespace(wae_cuda_select=calls.append)
    monkeypatch.setattr(_load, "CPU", _load.Loaded(cpu, ""))
    monkeypatch.setattr(_load, "CUDA", _load.Loaded(cuda, ""))
    monkeypatch.setattr(backends, "_sees_gpu", lambda: True)
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    wanted = {
        "auto": [b"auto", True],
        "cpu": [b"cpu", True],
        "cpu:avx2": [b"avx2", True],
        "cuda": [b"auto", True],
        "triton": [b"auto", False],
        "reference": [b"reference", False],
    }
    for name, choices in wanted.items():
        calls.clear()
        backends.select(name)
        assert calls == choices, name
        for on_processor in (True, False):
            assert backends.kernels_run(on_processor=on_processor) == (name != "reference")


def test_reference_runs_without_the_compiled_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "CPU", _load.Loaded(None, "it is not here"))
    assert backends.backend_for("cpu") == "reference"
    assert not backends.kernels_run(on_processor=True)
    assert not backends.int8_runs()
    assert backends.available()[0].reason == "the compiled library is missing: it is not here"
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*reference on .*, got 'cpu'"):
        backends.select("cpu")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["", "gpu", "cpu:", "cpu:sse", "Reference", *UNUSABLE])
def test_error_for_an_unusable_backend_lists_the_usable_ones(name: str) -> None:
    before = backends.selected()
    with pytest.raises(ValueError, match="backend must be one of auto,") as refusal:
        backends.select(name)
    assert all(usable in str(refusal.value) for usable in USABLE)
    assert str(refusal.value).endswith(f"got {name!r}")
    with pytest.raises(ValueError, match="backend must be one of auto,"), backends.use(name):
        pytest.fail("an unusable backend was selected")
    assert backends.selected() == before


@pytest.mark.parametrize("name", ["reference", USABLE[-2] if len(USABLE) > 1 else "auto"])
@pytest.mark.slow
def test_environment_variable_selects_the_backend(name: str) -> None:
    program = "import wae_kernels.backends as b; print(b.selected(), b.backend_for('cpu'))"
    with backends.use(name):
        expected = backends.backend_for("cpu")
    assert run_python(program, name).stdout.split() == [name, expected]


def test_default_is_auto() -> None:
    """Triton, whose import takes a second, is not imported."""
    program = "import sys, wae_kernels; print(wae_kernels.backends.selected(), 'triton' in sys.modules)"
    assert run_python(program, None).stdout == "auto False\n"


_LIBRARY_ALONE = """
import torch; torch.ops.load_library({!r})

def refused(op, *inputs):
    try:
        getattr(torch.ops.wae, op)(*inputs)
    except RuntimeError as error:
        print(error)

weight = [torch.randn(16, n, 3, 3) for n in (3, 16, 16)] + [torch.randn(3, 16, 3, 3)] * 2
parameters = [t for w in weight for t in (w, w[:, 0, 0, 0])]
low, _ = torch.ops.wae.encode(torch.randn(1, 3, 8, 9), *parameters)
assert low.shape == (1, 3, 4, 5)
refused("encode", torch.randn(1, 3, 8, 9).double(), *(p.double() for p in parameters))

classes, trunk = torch.randn(33, 16, 3, 3), torch.randn(16, 16, 3, 3)
weight = [(classes, trunk), (classes, trunk), (trunk, trunk), (classes, classes)]
parameters = [t for w, of_bias in weight for t in (w, of_bias[:, 0, 0, 0])]
refused("decode_scores", torch.randn(1, 33, 4, 5), torch.randn(1, 33, 4, 5), *parameters, (8, 9))
"""


@needs_library
def test_library_alone_refuses_what_has_no_kernel() -> None:
    """A C++ program, for example, loads the library without the Python package."""
    assert _load.CPU.library is not None
    messages = run_python(_LIBRARY_ALONE.format(_load.CPU.library._name), None).stdout
    for op in ("encode", "decode_scores"):
        assert f"wae::{op}: " in messages
    why = "only what has a compiled kernel runs (width 16, at most 32 classes and features, not float64)"
    assert messages.count(why) == 2


@pytest.mark.slow
def test_unknown_backend_in_the_environment_is_refused() -> None:
    result = run_python("import wae_kernels", "fastest")
    assert result.returncode != 0
    assert "ValueError: WAE_BACKEND: backend must be one of auto" in result.stderr
    assert "'fastest'" in result.stderr


@pytest.mark.parametrize("value", ["off", "2", "00"])
def test_wrong_value_of_wae_amx_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAE_AMX", value)
    with pytest.raises(ValueError, match=f"^WAE_AMX must be 0 or 1, got '{value}'$"):
        backends._select_from_environment()


@pytest.mark.parametrize(("name", "chosen"), [("", "auto"), ("reference", "reference")])
def test_environment_is_read(name: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable counts as unset."""
    before = backends.selected()
    monkeypatch.setenv("WAE_AMX", "")
    monkeypatch.setenv("WAE_BACKEND", name)
    try:
        backends._select_from_environment()
        assert backends.selected() == chosen
    finally:
        backends.select(before)
