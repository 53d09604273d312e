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
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch
from cases import Cell, arguments_of, as_tuple, recorded
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


def convolutions(device: str) -> int:
    """How many of PyTorch's convolutions an encode is made of, run now."""
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


def test_what_is_selected_runs(cell: Cell) -> None:
    assert backends.selected() == cell.name
    asked = backends.backend_for(cell.device)
    assert asked == (cell.name if cell.name != "auto" else asked)
    assert convolutions(cell.device) == (5 if asked == "reference" else 0)


def test_automatic_is_the_best_that_is_available() -> None:
    with backends.use("auto"):
        assert backends.backend_for("cpu") == next(name for name in USABLE if name != "cuda")


def test_cpu_is_the_best_of_the_compiled_kernels() -> None:
    if USABLE == ["reference"]:
        pytest.skip("there is no compiled library")
    with backends.use("cpu"):
        assert backends.backend_for("cpu") == USABLE[0]


@pytest.mark.parametrize("name", USABLE)
def test_what_has_no_kernel_runs_the_reference(name: str) -> None:
    with backends.use(name):
        assert backends.backend_for("cpu", torch.float64) == "reference"
        assert backends.backend_for("cpu", torch.float32, 8) == "reference"
        assert backends.backend_for("meta") == "reference"


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_used_where_torch_uses_it(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert backends.tf32_allowed() == allowed


def test_the_former_name_of_the_kernels_width_warns() -> None:
    with pytest.warns(DeprecationWarning, match="WIDTH is .*parameters.KERNEL_WIDTH now") as warned:
        assert backends.WIDTH == KERNEL_WIDTH
    assert warned[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'HEIGHT'"):
        _ = backends.HEIGHT


def test_use_puts_the_former_choice_back() -> None:
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
def known_bits() -> tuple[list[Tensor], dict[str, Tensor]]:
    """Arguments of an encode, and its outputs' bits by two backends, which these tell apart."""
    arguments, bits = arguments_of("encode", size=(40, 60)), {}
    for name in ("reference", USABLE[0]):
        with backends.use(name):
            bits[name] = torch.cat(torch.ops.wae.encode(*arguments), 1)
    return arguments, bits


def runs_here() -> str:
    """Which of the two backends runs; an empty word for neither."""
    arguments, bits = known_bits()
    out = torch.cat(torch.ops.wae.encode(*arguments), 1)
    return next((name for name, known in bits.items() if torch.equal(out, known)), "")


def test_the_bits_tell_the_backends_apart() -> None:
    _, bits = known_bits()
    assert USABLE == ["reference"] or not torch.equal(*bits.values())


def test_threads_choose_for_themselves() -> None:
    """Blocks that overlap in two threads leave nothing behind, and neither sees the other's choice."""
    before, both = backends.selected(), threading.Barrier(2, timeout=60)
    known_bits()

    def work(name: str, leaves_first: bool) -> tuple[str, str]:
        with backends.use(name):
            both.wait()
            seen = backends.selected(), runs_here()
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
    assert backends.selected() == before
    assert runs_here() == USABLE[0]


def test_a_thread_starts_with_the_process_choice() -> None:
    with backends.use("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(backends.selected).result() == "auto"
    backends.select("reference")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(backends.selected).result() == "reference"


def test_a_block_goes_before_the_process_choice() -> None:
    with backends.use("reference"):
        backends.select(USABLE[0])
        assert backends.selected() == "reference"
    assert backends.selected() == USABLE[0]


def test_tasks_choose_for_themselves() -> None:
    async def work(name: str, mine: asyncio.Event, other: asyncio.Event) -> tuple[str, str]:
        with backends.use(name):
            mine.set()
            await other.wait()
            return backends.selected(), runs_here()

    async def both() -> list[tuple[str, str]]:
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(work("reference", a, b), work(USABLE[0], b, a))

    before = backends.selected()
    assert asyncio.run(both()) == [("reference", "reference"), (USABLE[0], USABLE[0])]
    assert backends.selected() == before


def test_a_task_keeps_the_choice_of_the_block_that_it_was_made_in() -> None:
    async def later(event: asyncio.Event) -> tuple[str, str]:
        await event.wait()
        return backends.selected(), runs_here()

    async def outlive() -> tuple[str, str]:
        event = asyncio.Event()
        with backends.use("reference"):
            task = asyncio.create_task(later(event))
        event.set()
        return await task

    assert asyncio.run(outlive()) == ("reference", "reference")


def test_the_library_asks_only_while_there_is_a_choice_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    if USABLE == ["reference"]:
        pytest.skip("there is no compiled library")
    gc.collect()  # choices that a failed test's traceback keeps
    asked: list[None] = []
    answer = backends.selected
    monkeypatch.setattr(backends, "selected", lambda: (asked.append(None), answer())[1])
    arguments = arguments_of("encode")
    torch.ops.wae.encode(*arguments)  # after a block before this test, the last question
    with backends.use("cpu"):
        asked.clear()
        torch.ops.wae.encode(*arguments)
        assert len(asked) == 1
    torch.ops.wae.encode(*arguments)
    asked.clear()
    torch.ops.wae.encode(*arguments)
    assert not asked


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_a_backward_pass_uses_its_forward_passs_choice(op: str) -> None:
    arguments = arguments_of(op, requires_grad=True)
    with backends.use("reference"):
        outputs = as_tuple(getattr(torch.ops.wae, op)(*arguments))
    with recorded() as profile:
        sum(out.sum() for out in outputs).backward()
    assert any(event.name == "aten::convolution_backward" for event in profile.events())


# ------------------------------------------------------------------------------------------- the driver

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


@pytest.mark.parametrize("machine", ["", WITH_A_GPU], ids=["as it is", "with a GPU"])
@pytest.mark.slow
def test_nothing_touches_the_driver_before_the_first_tensor(machine: str) -> None:
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
def test_a_gpu_is_chosen_in_the_environment_without_the_driver() -> None:
    program = NO_DRIVER + WITH_A_GPU + "import wae_kernels; print(wae_kernels.backends.selected())"
    assert run_python(program, "triton").stdout == "triton\n"
    assert "backend must be one of auto" in run_python(NO_DRIVER + "import wae_kernels", "triton").stderr


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
def test_a_gpu_is_seen_without_the_driver(
    counted: int, file: str, seen: bool, amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the management library counts; where that cannot tell, by the files of a driver."""
    monkeypatch.setattr(torch.version, "hip", "6.0" if amd else None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, f"_device_count_{'amdsmi' if amd else 'nvml'}", lambda: counted)
    monkeypatch.setattr(torch.cuda, f"_device_count_{'nvml' if amd else 'amdsmi'}", pytest.fail)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == file)
    for built in (True, False):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        assert (backends.gpu() is not None) == (seen and built)


def test_a_gpu_has_the_name_that_its_driver_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    files: list[Path] = []
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(files))
    assert backends.gpu() == "the GPU"  # on Windows, say
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
        ((7, 0), "6.0", ["cuda", "triton"]),  # AMD counts otherwise
        (None, None, []),
    ],
    ids=["7.0", "7.5", "8.0", "AMD", "no GPU"],
)
def test_what_runs_on_a_gpu(
    capability: tuple[int, int] | None, hip: str | None, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_load, "CUDA", _load.Loaded(SimpleNamespace(), ""))
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    monkeypatch.setattr(backends, "_sees_gpu", lambda: capability is not None)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU of theirs")
    found = {b.name: b for b in backends.available() if b.name in ("cuda", "triton")}
    assert [name for name, backend in found.items() if backend.available] == runs
    for name, oldest in (("cuda", "7.5"), ("triton", "8.0")):
        why = "a GPU of theirs" if name in runs else f"older than compute capability {oldest}"
        assert (why if capability else "there is no GPU here") in found[name].reason


def test_each_library_is_told_what_it_is_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    cpu = SimpleNamespace(wae_cpu_supports=lambda name: True, wae_cpu_select=told.append)
    cuda = SimpleNamespace(wae_cuda_select=told.append)
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
    for name, words in wanted.items():
        told.clear()
        backends.select(name)
        assert told == words, name
        for on_processor in (True, False):
            assert backends.kernels_run(on_processor=on_processor) == (name != "reference")


def test_without_the_compiled_library_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "CPU", _load.Loaded(None, "it is not here"))
    assert backends.backend_for("cpu") == "reference"
    assert not backends.kernels_run(on_processor=True)
    assert not backends.int8_runs()
    assert backends.available()[0].reason == "the compiled library is missing: it is not here"
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*reference on .*, got 'cpu'"):
        backends.select("cpu")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["", "gpu", "cpu:", "cpu:sse", "Reference", *UNUSABLE])
def test_what_cannot_be_used_is_refused_with_what_can(name: str) -> None:
    before = backends.selected()
    with pytest.raises(ValueError, match="backend must be one of auto,") as refusal:
        backends.select(name)
    assert all(usable in str(refusal.value) for usable in USABLE)
    assert str(refusal.value).endswith(f"got {name!r}")
    with pytest.raises(ValueError, match="backend must be one of auto,"), backends.use(name):
        pytest.fail("it was chosen")
    assert backends.selected() == before


@pytest.mark.parametrize("name", ["reference", USABLE[-2] if len(USABLE) > 1 else "auto"])
@pytest.mark.slow
def test_the_environment_variable(name: str) -> None:
    program = "import wae_kernels.backends as b; print(b.selected(), b.backend_for('cpu'))"
    with backends.use(name):
        expected = backends.backend_for("cpu")
    assert run_python(program, name).stdout.split() == [name, expected]


def test_without_the_environment_variable_the_choice_is_automatic() -> None:
    """And Triton, which takes a second, is not imported for it."""
    program = "import sys, wae_kernels; print(wae_kernels.backends.selected(), 'triton' in sys.modules)"
    assert run_python(program, None).stdout == "auto False\n"


@pytest.mark.skipif(_load.CPU.library is None, reason="the compiled library is missing")
def test_without_python_s_part_what_has_no_kernel_is_refused_in_words() -> None:
    """As in a program in C++, which loads the library alone."""
    assert _load.CPU.library is not None
    program = (
        f"import torch; torch.ops.load_library({_load.CPU.library._name!r})\n"
        "weight = [torch.randn(16, n, 3, 3) for n in (3, 16, 16)] + [torch.randn(3, 16, 3, 3)] * 2\n"
        "parameters = [t for w in weight for t in (w, w[:, 0, 0, 0])]\n"
        "low, _ = torch.ops.wae.encode(torch.randn(1, 3, 8, 9), *parameters)\n"
        "assert low.shape == (1, 3, 4, 5)\n"
        "torch.ops.wae.encode(torch.randn(1, 3, 8, 9).double(), *(p.double() for p in parameters))\n"
    )
    said = run_python(program, None).stderr
    assert "RuntimeError: wae::encode: " in said
    assert "without wae_kernels in Python only what has a compiled kernel runs" in said


@pytest.mark.slow
def test_an_environment_variable_that_names_no_backend_is_refused() -> None:
    result = run_python("import wae_kernels", "fastest")
    assert result.returncode != 0
    assert "ValueError: WAE_BACKEND: backend must be one of auto" in result.stderr
    assert "'fastest'" in result.stderr


@pytest.mark.parametrize("value", ["off", "2", "00"])
def test_a_wrong_switch_of_amx_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAE_AMX", value)
    with pytest.raises(ValueError, match=f"^WAE_AMX must be 0 or 1, got '{value}'$"):
        backends._select_from_environment()


@pytest.mark.parametrize(("name", "chosen"), [("", "auto"), ("reference", "reference")])
def test_the_environment_is_read(name: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is as none."""
    before = backends.selected()
    monkeypatch.setenv("WAE_AMX", "")
    monkeypatch.setenv("WAE_BACKEND", name)
    try:
        backends._select_from_environment()
        assert backends.selected() == chosen
    finally:
        backends.select(before)
