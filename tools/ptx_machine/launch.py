"""Builds a translated kernel with g++ and launches grids of it on numpy or torch arrays."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .parse import Kernel, PtxError, Variable, parse
from .translate import SLOT_SHIFT, Translation, translate

MODULE_SLOTS = 64  # address slots for the module's own variables, before those of a launch
_HERE = Path(__file__).parent
CACHE = Path(os.environ.get("PTX_MACHINE_CACHE") or _HERE / ".cache")
_FLAGS = [
    "-std=c++20",
    "-march=native",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fPIC",
    "-w",
]


class KernelError(PtxError):
    """A kernel did something wrong. The message says what, in which thread, and where in PTX and source."""


@dataclass
class Counts:
    """Counts of a launch, summed over its grid.

    Attributes:
        read_bytes, written_bytes: of global memory, as requested by the threads.
        by_buffer: these two, by buffer name.
        read_sectors, written_sectors: distinct 32-byte sectors of each warp's global accesses.
        shared_read_bytes, shared_written_bytes: of shared memory.
        shared_wavefronts: passes that shared memory needs, with 32 banks of 4 bytes. 8-byte accesses are
            counted by half warps; 16-byte accesses, ldmatrix and stmatrix by 8 lanes.
        shared_ideal_wavefronts: the same without bank conflicts.
        barriers: completed block barriers.
        instructions: executed by threads, including those whose predicate was false.
        multiply_adds: those of all tensor and FMA instructions.
        tensor: mma.sync instructions of warps, by shape, accumulator and inputs, such as m16n8k16.f32.f16.
        fma: fused multiply-add instructions of threads, by type.
    """

    read_bytes: int = 0
    written_bytes: int = 0
    read_sectors: int = 0
    written_sectors: int = 0
    shared_read_bytes: int = 0
    shared_written_bytes: int = 0
    shared_wavefronts: int = 0
    shared_ideal_wavefronts: int = 0
    barriers: int = 0
    instructions: int = 0
    multiply_adds: int = 0
    tensor: dict[str, int] = field(default_factory=dict)
    fma: dict[str, int] = field(default_factory=dict)
    by_buffer: dict[str, tuple[int, int]] = field(default_factory=dict)


def _fields(kind: Any, names: str) -> list[Any]:
    return [(name, kind) for name in names.split()]


class _Buffer(ctypes.Structure):  # machine_state.h: Buffer
    _fields_ = _fields(ctypes.c_uint64, "base low high writable read_bytes written_bytes")


class _Launch(ctypes.Structure):  # machine_state.h: Launch
    _fields_ = [
        *_fields(ctypes.c_void_p, "kernel params buffers"),
        *_fields(ctypes.c_uint64, "seed loop_limit"),
        *_fields(ctypes.c_uint32 * 3, "grid block"),
        *_fields(ctypes.c_uint32, "buffer_count param_bytes local_bytes sites static_shared dynamic_shared"),
        *_fields(ctypes.c_uint32, "shuffle_blocks allow_uninitialized target"),
        *_fields(ctypes.c_uint64, "read_bytes written_bytes read_sectors written_sectors shared_wavefronts"),
        *_fields(ctypes.c_uint64, "shared_ideal_wavefronts shared_read_bytes shared_written_bytes barriers"),
        *_fields(ctypes.c_uint32, "failed failed_site"),
        *_fields(ctypes.c_uint32 * 3, "failed_thread failed_block"),
        ("message", ctypes.c_char * 1024),
    ]


def _array(buffer: Any) -> tuple[int, int, int, bool]:
    """A host address, the array's first and past-the-last byte relative to it, and whether it is writable.

    The address is that of the allocation, or of the array's first byte if that comes before it.
    """
    if hasattr(buffer, "untyped_storage"):  # torch.Tensor
        if buffer.device.type != "cpu":
            raise ValueError(f"a buffer must be on the CPU, got one on {buffer.device}")
        base, start, width = buffer.untyped_storage().data_ptr(), buffer.data_ptr(), buffer.element_size()
        shape, strides, writable = buffer.shape, [s * width for s in buffer.stride()], True
    elif isinstance(buffer, np.ndarray):
        owner: Any = buffer
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        base, start, width = owner.ctypes.data, buffer.ctypes.data, buffer.itemsize
        shape, strides, writable = buffer.shape, list(buffer.strides), buffer.flags.writeable
    else:
        raise TypeError(f"a buffer must be a numpy array or a torch tensor, got {type(buffer).__name__}")
    reach = [] if 0 in shape else [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    first = start + sum(r for r in reach if r < 0)
    end = start + sum(r for r in reach if r > 0) + (0 if 0 in shape else width)
    base = min(base, first)
    return base, first - base, end - base, writable


def _start(buffer: Any) -> int:
    return int(buffer.data_ptr() if hasattr(buffer, "data_ptr") else buffer.ctypes.data)


class Memory:
    """Device addresses of buffers. Each has a range of 2^40 bytes, so that an overrun hits no other."""

    def __init__(self, first_slot: int = MODULE_SLOTS) -> None:
        self.first_slot = first_slot
        self.names: list[str] = []
        self.entries: list[_Buffer] = []
        self.kept: list[Any] = []

    def address_of(self, buffer: Any, name: str = "") -> int:
        """The device address of an array's first element. Registers the array if it is new."""
        base, low, high, writable = _array(buffer)
        same = [n for n, e in enumerate(self.entries) if (e.base, e.low, e.high) == (base, low, high)]
        if not same:
            self.entries.append(_Buffer(base, low, high, writable))
            self.names.append(name or f"buffer {len(self.names)}")
            self.kept.append(buffer)
        slot = self.first_slot + (same[0] if same else len(self.entries) - 1)
        return ((slot + 1) << SLOT_SHIFT) + _start(buffer) - base


@functools.cache
def why_not() -> str:
    """Why kernels cannot run here, as a reason to skip a test; an empty string if they can."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        return f"PTX runs on Linux x86-64 only, not on {platform.system()} {platform.machine()}"
    return "" if shutil.which("g++") else "no g++ to compile translated PTX with"


@functools.cache
def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = re.search(r"flags\s*:.*", text)
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return version + (flags[0] if flags else "")


def _build(name: str, suffix: str, key: str, commands: Any) -> Path:
    """The cached file that the commands make. `key` is everything that it depends on."""
    digest = hashlib.sha256((key + _cpu()).encode()).hexdigest()[:24]
    target = CACHE / f"{name[:60]}-{digest}{suffix}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / f"made{suffix}"
            for command in commands(Path(folder), made):
                done = subprocess.run(["g++", *_FLAGS, *command], capture_output=True, text=True)
                if done.returncode:
                    raise PtxError(f"g++ failed on {name}: {done.stderr[:3000]}")
            os.replace(made, target)
    return target


@functools.cache
def _runtime() -> tuple[Path, str]:
    """The machine's object file, and a hash of its sources and of the headers that kernels include."""
    sources = [_HERE / f"{n}.cpp" for n in ("machine", "memory", "warp")]
    headers = "".join(p.read_text() for p in sorted(_HERE.glob("*.h")))
    key = headers + "".join(p.read_text() for p in sources)

    def commands(folder: Path, made: Path) -> list[list[str]]:
        objects = [folder / f"{s.stem}.o" for s in sources]
        compiles = [["-O2", "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
        return [*compiles, ["-r", "-nostdlib", "-o", str(made), *map(str, objects)]]

    return _build("machine", ".o", key, commands), hashlib.sha256(key.encode()).hexdigest()


def _library(name: str, code: str) -> ctypes.CDLL:
    machine, runtime_key = _runtime()

    def commands(folder: Path, made: Path) -> list[list[str]]:
        source = folder / "kernel.cpp"
        source.write_text(code)
        return [
            ["-Og", f"-I{_HERE}", "-shared", "-Wl,-Bsymbolic", "-o", str(made), str(source), str(machine)]
        ]

    return ctypes.CDLL(str(_build(name, ".so", code + runtime_key, commands)))


class LaunchableKernel:
    """One kernel of a module. It is translated and compiled when it is first needed."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.module, self.kernel, self.name = module, kernel, kernel.name
        self.params: list[Variable] = kernel.params

    @functools.cached_property
    def translation(self) -> Translation:
        return translate(self.kernel, self.module.variables)

    @functools.cached_property
    def library(self) -> ctypes.CDLL:
        library = _library(self.name, self.translation.code)
        library.run_grid.argtypes = [ctypes.POINTER(_Launch)]
        return library

    def launch(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        seed: int = 0,
        loop_limit: int = 1 << 26,
        buffers: Mapping[str, Any] | Sequence[Any] = (),
        memory: Memory | None = None,
        shuffle_blocks: bool = False,
        allow_uninitialized: bool = False,
    ) -> Counts:
        """Run the grid and return its counts.

        Args:
            grid, block: one to three sizes.
            args: one per kernel parameter: a numpy array or a torch (CPU) tensor for a pointer, an int, a
                float, a numpy scalar, or bytes for a struct. For pointers inside bytes use
                memory.address_of(buffer).
            shared_bytes: dynamic shared memory.
            seed: of the random order of threads.
            loop_limit: backward branches of all threads of a block together, after which a loop counts as
                endless.
            buffers: more arrays that the kernel may access. Their names (the keys of a dict) appear in
                messages and in Counts.by_buffer. Parameters are called "arg 0" and so on.
            memory: the Memory that gave the addresses inside bytes.
            shuffle_blocks: run the blocks in random order.
            allow_uninitialized: reading shared memory that was never written gives NaN instead of an error.

        Raises:
            KernelError: the kernel does something wrong.
            ValueError, TypeError: the launch is wrong.
        """
        memory = memory or Memory()
        named = (
            buffers.items()
            if isinstance(buffers, Mapping)
            else ((f"buffer {n}", b) for n, b in enumerate(buffers))
        )
        for name, buffer in named:
            memory.address_of(buffer, name)
        data = self._arguments(args, memory)
        record = _Launch(seed=seed, loop_limit=loop_limit, param_bytes=len(data), dynamic_shared=shared_bytes)
        record.grid[:], record.block[:] = _three("grid", grid), _three("block", block)
        least, most = self.kernel.threads
        if not least <= record.block[0] * record.block[1] * record.block[2] <= most:
            raise ValueError(f"{self.name}: block must have {least} to {most} threads, got {block}")
        own = self.module.memory
        padding = MODULE_SLOTS - len(own.entries)
        entries = own.entries + [_Buffer()] * padding + memory.entries
        table = (_Buffer * len(entries))(*entries)
        translation = self.translation
        record.kernel = ctypes.cast(self.library.kernel, ctypes.c_void_p)
        record.params = ctypes.cast(ctypes.create_string_buffer(data, max(len(data), 1)), ctypes.c_void_p)
        record.buffers, record.buffer_count = ctypes.cast(table, ctypes.c_void_p), len(entries)
        record.static_shared, record.local_bytes = translation.static_shared, self.kernel.local_bytes
        record.sites = max(len(translation.sites), 1)
        record.shuffle_blocks, record.allow_uninitialized = shuffle_blocks, allow_uninitialized
        record.target = self.kernel.target
        hits = (ctypes.c_uint64 * len(translation.tallies)).in_dll(self.library, "hits")
        ctypes.memset(hits, 0, ctypes.sizeof(hits))
        names = own.names + [""] * padding + memory.names
        if self.library.run_grid(record):
            raise KernelError(self._explain(record, names))
        return self._counts(record, list(hits), dict(zip(names, table, strict=True)))

    def _arguments(self, args: Sequence[Any], memory: Memory) -> bytes:
        needed = len(self.params)
        if len(args) != needed:
            raise ValueError(f"{self.name}: the number of arguments must be {needed}, got {len(args)}")
        data = bytearray()
        for number, (param, value) in enumerate(zip(self.params, args, strict=True)):
            if isinstance(value, np.ndarray) or hasattr(value, "untyped_storage"):
                value = memory.address_of(value, f"arg {number}")
            if isinstance(value, (bytes, bytearray, np.generic)):
                packed = value.tobytes() if isinstance(value, np.generic) else bytes(value)
            elif isinstance(value, float):
                packed = struct.pack({2: "<e", 4: "<f", 8: "<d"}.get(param.size, "<d"), value)
            elif isinstance(value, int):
                packed = (value & 2 ** (8 * param.size) - 1).to_bytes(param.size, "little")
                if not -(2 ** (8 * param.size - 1)) <= value < 2 ** (8 * param.size):
                    raise ValueError(
                        f"argument {number} of {self.name}: {value} does not fit {param.size} bytes"
                    )
            else:
                raise TypeError(f"argument {number} of {self.name}: cannot pass a {type(value).__name__}")
            if len(packed) != param.size:
                raise ValueError(
                    f"argument {number} of {self.name} has {param.size} bytes, got {len(packed)}"
                )
            data.extend(bytes(param.offset - len(data)) + packed)
        return bytes(data)

    def _explain(self, record: _Launch, names: list[str]) -> str:
        sites = self.translation.sites
        where = sites[record.failed_site] if record.failed_site < len(sites) else self.kernel.body[0]
        message = record.message.decode()
        message = re.sub(r"#(\d+)#", lambda m: f"`{names[int(m[1])]}`", message)
        message = re.sub(r"@(\d+)@", lambda m: _place(sites[int(m[1])]), message)
        block, thread = tuple(record.failed_block), tuple(record.failed_thread)
        who = f"block {block}, thread {thread}, seed {record.seed}"
        return f"{self.name}: {message}\n  at {_place(where)}, {who}"

    def _counts(self, record: _Launch, hits: list[int], buffers: dict[str, _Buffer]) -> Counts:
        counts = Counts(
            **{f: getattr(record, f) for f, _ in _Launch._fields_ if f in Counts.__dataclass_fields__}
        )
        executed: Counter[str] = Counter()
        multiply_adds: Counter[str] = Counter()
        for times, tally in zip(hits, self.translation.tallies, strict=True):
            counts.instructions += times * tally.instructions
            for kind, n in tally.executed.items():
                executed[kind] += times * n
            for kind, n in tally.multiply_adds.items():
                multiply_adds[kind] += times * n
        for kind, n in executed.items():
            if kind.startswith("mma."):
                counts.tensor[kind[4:]] = n // 32
            elif n:
                counts.fma[kind[4:]] = n
        counts.tensor = {k: n for k, n in counts.tensor.items() if n}
        counts.multiply_adds = sum(n // 32 if k.startswith("mma.") else n for k, n in multiply_adds.items())
        counts.by_buffer = {name: (b.read_bytes, b.written_bytes) for name, b in buffers.items() if name}
        return counts


def _place(instruction: Any) -> str:
    source = f" ({instruction.source})" if instruction.source else ""
    return f"PTX line {instruction.line}{source} `{instruction.text}`"


def _three(name: str, size: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if not 1 <= len(sizes) <= 3 or any(s < 1 for s in sizes):
        raise ValueError(f"{name} must be one to three positive sizes, got {size}")
    return (*sizes, 1, 1, 1)[:3]  # type: ignore[return-value]


class Module:
    """The kernels and module variables of one PTX text."""

    def __init__(self, text: str) -> None:
        self.variables, kernels = parse(text)
        self.kernels = {name: LaunchableKernel(self, kernel) for name, kernel in kernels.items()}
        self.memory = Memory(first_slot=0)
        self.data: dict[str, np.ndarray] = {}
        for v in self.variables.values():
            if v.space != "shared":
                self.data[v.name] = np.frombuffer(bytearray(v.data), np.uint8)
                self.memory.address_of(self.data[v.name], v.name)

    def __getitem__(self, name: str) -> LaunchableKernel:
        """The kernel with this name, or the only one whose (mangled) name contains it."""
        found = [name] if name in self.kernels else [n for n in self.kernels if name in n]
        if len(found) != 1:
            raise KeyError(f"{name!r} names {len(found)} kernels of: {', '.join(self.kernels)}")
        return self.kernels[found[0]]


def load(text: str) -> Module:
    """Read PTX. Raises PtxError. Instructions are checked later, when a kernel is translated."""
    return Module(text)


def poisoned(shape: int | Sequence[int], dtype: Any) -> Any:
    """A fresh output of 0xff bytes (NaN in every float type): a numpy array or torch tensor, by its dtype."""
    if type(dtype).__module__ == "torch":
        import torch

        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        raw = torch.full((*sizes, torch.empty((), dtype=dtype).element_size()), 255, dtype=torch.uint8)
        return raw.view(dtype).squeeze(-1)
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = 255
    return array
