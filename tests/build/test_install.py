"""The package as a user meets it: what the wheel holds, and what an installation without kernels says."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import toolchain
import torch

import wae_kernels

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "out", "tests", "benches", "docs", "__pycache__", "*.so", "*.egg-info"
)
CUDA_FILE = "_C_cuda.abi3.so"
ALLOWED_LIBRARIES = {"libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6"}


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run with stdout and stderr together, without inherited variables that select kernels or a backend."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("WAE_NO_NATIVE", "WAE_BACKEND")}
    return subprocess.run(
        command,
        cwd=cwd,
        env=inherited | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )


def build_wheel(source: Path, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without the CUDA library, which takes minutes on a machine with a GPU."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(target)]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    return run(command, source, WAE_NO_CUDA="1", **environment)


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def undefined_symbols(library: Path) -> list[str]:
    output = subprocess.check_output([tool("nm"), "-DC", "--undefined-only", str(library)], text=True)
    return [line.split(maxsplit=1)[1] for line in output.splitlines()]


def unstable(symbols: list[str]) -> list[str]:
    """Those that may change with every version of torch."""
    return [s for s in symbols if re.search(r"\b(c10|at|torch)::", s)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources to build in, with a CUDA library as earlier builds leave it."""
    copy = tmp_path_factory.mktemp("source") / "wae-kernels"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    platform_name = sysconfig.get_platform()
    for root in (copy, copy / "build" / f"lib.{platform_name}-{sys.implementation.cache_tag}"):
        (root / "wae_kernels").mkdir(parents=True, exist_ok=True)
        (root / "wae_kernels" / CUDA_FILE).write_bytes(b"of an earlier build")
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    result = build_wheel(source, target)
    if "no C++ compiler found" in result.stdout:
        pytest.skip("no C++ compiler")
    assert result.returncode == 0, result.stdout
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture(scope="module")
def library(unpacked: Path) -> Path:
    (found,) = (unpacked / "wae_kernels").glob("_C.*")
    return found


# -------------------------------------------------------------------------------------------------- the wheel


@pytest.mark.slow
def test_wheel_serves_every_python_from_3_10(wheel: Path, library: Path) -> None:
    assert wheel.name.split("-")[2:4] == ["cp310", "abi3"]
    assert library.name == "_C.abi3.so"


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        "wae_kernels/__init__.py",
        "wae_kernels/schemas.inc",
        "wae_kernels/arguments.inc",
        "wae_kernels/py.typed",
        "wae/__init__.py",
        "wae/cli.py",
        "wae/commands/__init__.py",
        "wae/py.typed",
        "wae/models/__init__.py",
        "wae/training/__init__.py",
        "wae/training/plans/wae_resnet50.toml",
    ],
)
def test_wheel_holds(unpacked: Path, file: str) -> None:
    assert (unpacked / file).is_file()


@pytest.mark.slow
def test_wheel_holds_the_included_weights_and_no_other_package(unpacked: Path) -> None:
    shipped = ROOT / "python" / "wae" / "weights"
    assert {p.name for p in shipped.iterdir() if p.is_file()} <= {
        p.name for p in (unpacked / "wae" / "weights").iterdir()
    }
    assert {p.name for p in unpacked.iterdir() if not p.name.endswith(".dist-info")} == {"wae", "wae_kernels"}


@pytest.mark.slow
def test_wheel_runs_where_it_is_unpacked(unpacked: Path, tmp_path: Path) -> None:
    program = "import wae_kernels as w; print(w.__file__, w.backends.backend_for('cpu'))"
    result = run([sys.executable, "-W", "error", "-c", program], tmp_path, PYTHONPATH=str(unpacked))
    assert str(unpacked) in result.stdout
    assert "cpu:" in result.stdout


@pytest.mark.slow
def test_the_audits_of_make_dist_pass(wheel: Path, tmp_path: Path) -> None:
    if sys.platform != "linux" or importlib.util.find_spec("auditwheel") is None:
        pytest.skip("auditwheel, for Linux, is not installed")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (left_out,) = re.findall(r"^NOT_OURS := (.*)$", makefile, re.MULTILINE)
    exclude = [word for name in shlex.split(left_out) for word in ("--exclude", name)]
    for command in (
        ["auditwheel", "repair", *exclude, "-w", str(tmp_path), str(wheel)],
        ["abi3audit", "--strict", str(wheel)],
        ["twine", "check", "--strict", str(wheel)],
    ):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = run(command, ROOT, PATH=path)
        assert result.returncode == 0, result.stdout
    (repaired,) = tmp_path.glob("*.whl")
    assert "manylinux" in repaired.name
    assert not [name for name in zipfile.ZipFile(repaired).namelist() if ".libs/" in name]


@pytest.mark.slow
def test_wheel_works_in_a_new_environment_without_a_compiler(wheel: Path) -> None:
    """The environment uses this test's torch and other packages."""
    result = run(["tools/try_wheel.sh", str(wheel)], ROOT, PYTHON=sys.executable, BESIDE=purelib())
    assert result.returncode == 0, result.stdout
    assert f"beside torch {torch.__version__} on Python" in result.stdout


def purelib() -> str:
    return str(Path(torch.__file__).parents[1])


def test_the_version_is_defined_in_one_place() -> None:
    places = [
        path.relative_to(ROOT).as_posix()
        for folder in ("wae_kernels", "python", "tools", "docs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^(__)?version(__)? = ", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert places == ["wae_kernels/__init__.py"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changes, re.MULTILINE)[0] in ("Unreleased", wae_kernels.__version__)


@pytest.mark.slow
def test_source_archive_holds_every_file(tmp_path: Path) -> None:
    """Hidden files as well, because the Makefile and the tests read some of them."""
    listed = run(["git", "ls-files"], ROOT)
    if listed.returncode:
        pytest.skip("there is no git repository here")
    files, source = set(listed.stdout.splitlines()), tmp_path / "source"
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    made = run(
        [sys.executable, "-c", "import build_backend; build_backend.build_sdist('..')"],
        source,
        PYTHONPATH="tools",
    )
    assert made.returncode == 0, made.stdout
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        assert files <= {name.partition("/")[2] for name in archive.getnames()}


@pytest.mark.slow
def test_wheel_holds_no_library_of_an_earlier_build(wheel: Path) -> None:
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(CUDA_FILE)]


# ---------------------------------------------------------------------------- in place, over an earlier build

BUILD_EDITABLE = (
    "import sys; sys.path.insert(0, 'tools'); import build_backend as b; b.build_editable('dist')"
)


@pytest.fixture
def built_before(tmp_path: Path) -> Path:
    """A copy of the sources with libraries in place, of every kind that a build makes."""
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    for name in ("_C.abi3.so", "_C.cpython-313t-x86_64-linux-gnu.so", CUDA_FILE):
        (copy / "wae_kernels" / name).write_bytes(b"of an earlier build")
    (copy / "dist").mkdir()
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "value", "left"),
    [
        pytest.param(["-c", BUILD_EDITABLE], "1", 0, id="pip-install-e"),
        pytest.param(["-c", BUILD_EDITABLE], "later", 3, id="make"),
        pytest.param(["setup.py", "build_ext", "--inplace"], "1", 0, id="build_ext"),
    ],
)
def test_no_native_removes_the_libraries_of_an_earlier_build(
    built_before: Path, command: list[str], value: str, left: int
) -> None:
    """With ``later``, the Makefile installs without building or removing anything."""
    result = run([sys.executable, "-W", "ignore", *command], built_before, WAE_NO_NATIVE=value)
    assert result.returncode == 0, result.stdout
    assert len(list((built_before / "wae_kernels").glob("*.so"))) == left


@pytest.mark.slow
def test_a_build_in_place_keeps_what_it_makes(wheel: Path, source: Path) -> None:
    result = run([sys.executable, "setup.py", "build_ext", "--inplace"], source, WAE_NO_CUDA="1")
    assert result.returncode == 0, result.stdout
    assert [path.name for path in (source / "wae_kernels").glob("*.so")] == ["_C.abi3.so"]


# ------------------------------------------------------------------------------------------------ the library


@pytest.mark.slow
def test_library_needs_only_the_stable_abi(library: Path) -> None:
    symbols = undefined_symbols(library)
    assert any(s.startswith("aoti_torch_") for s in symbols)
    assert unstable(symbols) == []


def test_the_check_for_unstable_symbols_finds_some() -> None:
    linked_with_c10 = Path(torch.__file__).parent / "lib" / "libshm.so"
    if not linked_with_c10.exists():
        pytest.skip("this torch has no libshm.so")
    assert unstable(undefined_symbols(linked_with_c10))


@pytest.mark.slow
def test_library_links_neither_python_nor_torch_python(library: Path) -> None:
    output = subprocess.check_output([tool("readelf"), "-dW", str(library)], text=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output))
    assert "libtorch_cpu.so" in needed
    assert {n for n in needed if not n.startswith("ld-linux")} <= ALLOWED_LIBRARIES


@pytest.mark.slow
def test_library_exports_only_what_python_calls(library: Path) -> None:
    output = subprocess.check_output([tool("nm"), "-D", "--defined-only", str(library)], text=True)
    strong = [name for _, kind, name in (line.split() for line in output.splitlines()) if kind in "TDB"]
    assert sorted(strong) == [
        "wae_cpu_amx",
        "wae_cpu_ask",
        "wae_cpu_int8",
        "wae_cpu_kernels",
        "wae_cpu_poison",
        "wae_cpu_select",
        "wae_cpu_sleeping_threads",
        "wae_cpu_supports",
        "wae_python_inputs_of",
    ]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="about x86-64 instructions")
def test_vector_instructions_stay_in_the_kernels_chosen_at_run_time(library: Path) -> None:
    """An inline function that one file compiles for AVX would be shared with all, and crash on older CPUs."""
    command = [tool("objdump"), "-dC", "--no-show-raw-insn", str(library)]
    users = {"avx2": 0, "avx512": 0, "avxvnni": 0, "avx512vnni": 0, "avx512amx": 0}
    strays = []
    for function in subprocess.check_output(command, text=True).split("\n\n"):
        if not re.search(r"%[tyz]mm|\t(v|tile|ldtile)[a-z]+", function):
            continue
        name = function.strip().splitlines()[0]
        variant = next((v for v in users if f"wae::{v}::" in name), None)
        if variant is None:
            strays.append(name)
        else:
            users[variant] += 1
    assert strays == []
    assert all(users.values()), users


# ---------------------------------------------------------------------------------------- without the library

FIRST_USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, wae_kernels
    print("imported with", len(caught), "warnings")
    encoder, decoder = wae_kernels.nn.Encoder(), wae_kernels.nn.Decoder()
    image = torch.rand(1, 3, 5, 6)
    with torch.no_grad():
        for _ in range(2):
            low, high = encoder(image)
            decoder(low, high, (5, 6))
        expected = encoder.low(encoder.conv3(encoder.conv2(encoder.conv1(image).relu()).relu()).relu())
    assert torch.allclose(low, expected, atol=1e-5)
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


@pytest.fixture
def without_library(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "wae_kernels", tmp_path / "wae_kernels", ignore=NOT_SOURCES)
    return tmp_path


def warning_at_first_use(folder: Path) -> str:
    """The only warning, which the import does not raise yet."""
    result = run([sys.executable, "-c", FIRST_USE], folder)
    first, *warnings = result.stdout.splitlines()
    assert first == "imported with 0 warnings", result.stdout
    assert len(warnings) == 1, result.stdout
    return warnings[0]


def test_without_library_one_warning_at_first_use(without_library: Path) -> None:
    warning = warning_at_first_use(without_library)
    assert warning.startswith("RuntimeWarning wae_kernels runs on plain PyTorch operators")
    assert "it was not built" in warning
    assert "pip install -e ." in warning


@pytest.mark.slow
def test_with_a_damaged_library_one_warning_at_first_use(without_library: Path) -> None:
    (without_library / "wae_kernels" / "_C.abi3.so").write_bytes(b"not a library")
    warning = warning_at_first_use(without_library)
    assert f"it does not load beside torch {torch.__version__}" in warning
    assert "build it again" in warning


@pytest.mark.skipif(wae_kernels._load.CPU.library is None, reason="needs the compiled library")
@pytest.mark.parametrize("change", ["another argument", "another op"])
def test_a_library_of_other_sources_is_refused(without_library: Path, change: str) -> None:
    """As after a pull without a build. It would misread the memory behind its arguments as another one."""
    package = without_library / "wae_kernels"
    shutil.copy(wae_kernels._load.CPU.library._name, package)
    schemas = package / "schemas.inc"
    text = schemas.read_text()
    if change == "another argument":
        schemas.write_text(text.replace("bool relu=False", "bool relu=False, int stride=1"))
    else:
        schemas.write_text(text + 'WAE_SCHEMA(R"(one_more(Tensor x) -> Tensor y)")\n')
    result = run([sys.executable, "-c", "import wae_kernels"], without_library)
    assert result.returncode != 0
    op = "conv3x3" if change == "another argument" else "one_more"
    library = "the compiled library of wae_kernels"
    said = f"ImportError: {library} was built from other sources: its wae::{op} differs"
    assert said in result.stdout


CUDA_SOURCE = """
extern "C" {
void wae_cuda_select(int) {}
void wae_cuda_ask(int (*)()) {}
int (*asked)();
int tf32() { return asked(); }
#ifndef WITHOUT_TF32
void wae_cuda_ask_tf32(int (*ask)()) { asked = ask; }
#endif
#ifndef WITHOUT_SCHEMAS
const char* wae_cuda_schemas() {
#define WAE_SCHEMA(schema) schema ";"
  return
#include "schemas.inc"
      ;
}
#endif
}
"""


ASKS_FOR_TF32 = """
import torch, wae_kernels
for allowed in (True, False):
    torch.backends.cudnn.allow_tf32 = allowed
    assert wae_kernels._load.CUDA.library.tf32() == allowed
"""


@pytest.mark.parametrize("change", ["none", "another argument", "without schemas", "without tf32"])
def test_a_library_for_gpus_of_other_sources_is_refused(without_library: Path, change: str) -> None:
    """It defines no op whose schema could be read, so it reports those that it was compiled for."""
    package, source = without_library / "wae_kernels", without_library / "cuda.cpp"
    source.write_text(CUDA_SOURCE)
    flags = ["-shared", "-fPIC", f"-I{package}", f"-D{change.upper().replace(' ', '_')}"]
    built = run([tool("c++"), *flags, str(source), "-o", str(package / CUDA_FILE)], without_library)
    assert built.returncode == 0, built.stdout
    if change == "another argument":
        schemas = package / "schemas.inc"
        schemas.write_text(schemas.read_text().replace("bool relu=False", "bool relu=False, int stride=1"))
    result = run([sys.executable, "-c", ASKS_FOR_TF32], without_library)
    assert (result.returncode == 0) == (change == "none"), result.stdout
    if change != "none":
        op = "conv3x3" if change == "another argument" else "encode"
        assert "ImportError: the compiled library of wae_kernels for GPUs was built from" in result.stdout
        assert f"its wae::{op} differs; build it again" in result.stdout


@pytest.mark.slow
def test_no_native_gives_a_wheel_for_every_platform(source: Path, tmp_path: Path) -> None:
    result = build_wheel(source, tmp_path, WAE_NO_NATIVE="1", CXX="/nonexistent")
    assert result.returncode == 0, result.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".so")]


# --------------------------------------------------------------------------- what is missing, in one sentence


@pytest.mark.slow
def test_pip_says_that_the_compiler_is_missing(source: Path, tmp_path: Path) -> None:
    result = build_wheel(source, tmp_path, CXX="/nonexistent")
    assert result.returncode != 0
    assert "wae-kernels: no C++ compiler found (looked for /nonexistent); install one" in result.stdout
    assert "Traceback" not in result.stdout


def check_toolchain(**environment: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "tools/toolchain.py"], ROOT, **environment)


def test_a_missing_compiler_is_reported(tmp_path: Path) -> None:
    result = check_toolchain(PATH=str(tmp_path), CXX="")
    assert result.returncode != 0
    assert result.stdout.count("\n") == 1
    assert "(looked for g++, clang++, c++)" in result.stdout
    assert "WAE_NO_NATIVE=1" in result.stdout


def test_a_compiler_without_cxx20_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "old-c++"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = check_toolchain(CXX=str(old))
    assert result.returncode != 0
    assert result.stdout.startswith(f"wae-kernels: the C++ compiler '{old}' cannot compile C++20; ")
    assert result.stdout.count("\n") == 1


def test_every_supported_clang_knows_the_names_of_cpu_features() -> None:
    """GCC 11 knows more names, but clang refuses to compile ``__builtin_cpu_supports`` of an unknown one."""
    known_to_clang_14 = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}
    dispatch = (ROOT / "csrc/cpu/dispatch.cpp").read_text(encoding="utf-8")
    assert set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', dispatch)) == known_to_clang_14


def test_ccache_is_removed_from_the_compilers_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would look for a program named "ccache c++"."""
    compiler = next(filter(shutil.which, ("g++", "clang++")))
    monkeypatch.setenv("CXX", f"/usr/bin/ccache {compiler}")
    toolchain.require_compiler()
    assert os.environ["CXX"] == compiler


def test_a_compiler_with_options_is_refused() -> None:
    result = check_toolchain(CXX="g++ -m32")
    assert result.returncode != 0
    assert result.stdout.startswith("wae-kernels: CXX must name one program, got 'g++ -m32'; ")
    assert result.stdout.count("\n") == 1


def test_a_wrong_switch_is_refused() -> None:
    result = check_toolchain(WAE_NO_NATIVE="yes")
    assert result.returncode != 0
    assert result.stdout == "wae-kernels: WAE_NO_NATIVE must be 0 or 1, got 'yes'.\n"


def test_no_native_needs_no_compiler() -> None:
    assert check_toolchain(CXX="/nonexistent", WAE_NO_NATIVE="1").returncode == 0


GB = 10**9


@pytest.mark.parametrize(
    ("free", "installed", "warned"),
    [
        (12 * GB, 0, False),
        (11 * GB, 0, True),
        (3 * GB, 6 * GB, False),
        (2.5 * GB, 6 * GB, True),
        (0, 9 * GB, False),
    ],
)
def test_a_disk_that_is_too_small_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, installed: int, warned: bool
) -> None:
    """Both folders are on one disk. Files that are installed already need no more space."""
    environment, temporary = tmp_path / ".venv", tmp_path / "temporary"
    for folder in (environment, temporary):
        folder.mkdir()
    with (environment / "libtorch_cuda.so").open("wb") as file:
        file.truncate(installed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    warnings = list(toolchain.space_warnings(environment, temporary))
    assert len(warnings) == warned
    for line in warnings:
        needed = (8 - installed / GB) * 1.4
        assert f"{free / GB:.1f} GB are free for {environment} and {temporary}, which" in line
        assert f"may need {needed:.1f} GB more" in line


def test_each_disk_is_checked_separately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4 * GB))
    (line,) = toolchain.space_warnings(tmp_path, other)
    assert f"4.0 GB are free for {tmp_path}, which may need 8.0 GB" in line


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = ["setup.py", "--quiet", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""


def test_setup_says_that_torch_is_missing(source: Path) -> None:
    result = run([sys.executable, "-W", "ignore", "-c", WITHOUT_TORCH], source)
    assert result.returncode != 0
    assert result.stdout.startswith("wae-kernels: building needs PyTorch 2.10 or newer and ")
    assert "pip install torch" in result.stdout
    assert result.stdout.count("\n") == 1


# ----------------------------------------------------------------------------------------- build requirements


@pytest.fixture
def build_backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("WAE_NO_NATIVE", raising=False)
    for name in ("build_backend", "toolchain"):  # read that variable when they are imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("build_backend")
    monkeypatch.setattr(module, "require_compiler", lambda: None)
    return module


@pytest.mark.parametrize(
    ("installed", "required"), [(None, True), ("2.9.1", True), ("2.10.0", False), ("2.14.1+cu130", False)]
)
def test_torch_is_required_only_if_none_fits(
    build_backend: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    installed: str | None,
    required: bool,
) -> None:
    if installed:
        information = tmp_path / f"torch-{installed}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {installed}\n")
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    for hook in (build_backend.get_requires_for_build_wheel, build_backend.get_requires_for_build_editable):
        assert ("torch>=2.10" in hook()) == required
    assert build_backend.get_requires_for_build_sdist() == []


def test_no_native_needs_nothing_to_build(
    build_backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(build_backend, "NATIVE", False)
    assert build_backend.get_requires_for_build_wheel() == []
