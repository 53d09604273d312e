"""What tools/gpu.sh runs. Here, Python and CUDA's tools are scripts that only record their command lines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from benches import bench_classifiers

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in *find_spec*) echo "${LACKS:-}" ;; *"${FAILS:-nothing at all}"*) exit 3 ;; esac
"""
PROGRAMS = dict.fromkeys(("python", "compute-sanitizer", "ncu", "cuobjdump"), PROGRAM)


@dataclass(frozen=True)
class Run:
    """calls: command lines; summary: what the script wrote about its steps."""

    status: int
    calls: list[str]
    summary: str

    def call(self, *parts: str) -> str:
        """The one call with all of these parts."""
        (found,) = (call for call in self.calls if all(part in call for part in parts))
        return found


def install(folder: Path, programs: Mapping[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run(
    folder: Path,
    *stages: str,
    installed: Mapping[str, str] = PROGRAMS,
    script: Path = ROOT / "tools/gpu.sh",
    **variables: str,
) -> Run:
    programs, calls = install(folder / "programs", installed), folder / "calls"
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": str(programs / "python"),
        "OUT": str(folder / "out"),
        "CALLS": str(calls),
        **variables,
    }
    done = subprocess.run([script, *stages], env=environment, capture_output=True, text=True)
    summary = folder / "out/summary.txt"
    return Run(
        done.returncode,
        calls.read_text().splitlines() if calls.exists() else [],
        summary.read_text() if summary.exists() else done.stderr,
    )


def test_a_step_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    done = run(tmp_path, FAILS="first_calls.py")
    assert done.status == 1
    steps = re.findall(r"^(ok|FAIL|TIME) +(\w+)", done.summary, re.MULTILINE)
    assert steps[:3] == [("ok", "build"), ("FAIL", "first_calls"), ("ok", "test_cuda")]
    assert steps[-1] == ("ok", "profile")
    assert "\nfailed steps: 1; " in done.summary
    assert [result for result, _ in steps].count("ok") == len(steps) - 1 > 20


def test_missing_packages_are_reported_first(tmp_path: Path) -> None:
    """Otherwise every test would only fail at the same import."""
    done = run(tmp_path, "test", LACKS="hypothesis pytest_benchmark")
    assert "lacks hypothesis pytest_benchmark:" in done.summary.partition("test_cuda")[0]


def test_every_file_that_it_names_exists(tmp_path: Path) -> None:
    named = re.findall(r" ((?:tools|tests|benches)/[\w/.]+)", "\n".join(run(tmp_path).calls))
    assert {"tests/cuda/test_cuda.py", "tools/gpu/tune.py", "benches/bench_classifiers.py"} < set(named)
    assert all((ROOT / name).exists() for name in named)


def test_caches_are_elsewhere_if_the_home_folder_cannot_be_written(tmp_path: Path) -> None:
    """As in some containers; Triton would fail."""
    assert run(tmp_path, "report", HOME=str(tmp_path / "nowhere")).status == 0
    assert (tmp_path / "out/home").is_dir()


def test_a_test_that_hangs_is_logged(tmp_path: Path) -> None:
    """Before the step's own limit, 120 seconds, which ends everything without a message."""
    call = run(tmp_path, "test").call("tests/cuda/test_cuda.py")
    dumps, ends = (int(n) for n in re.findall(r"(?:faulthandler_|--)timeout=(\d+)", call))
    assert dumps < ends < 120


@pytest.mark.slow
def test_the_tests_that_failed_before_a_step_ran_out_of_time_are_reported(tmp_path: Path) -> None:
    """pytest reports them at Ctrl-C, but not at SIGTERM."""
    (tmp_path / "test_it.py").write_text(
        "import time\ndef test_wrong(): assert 1 == 2\ndef test_long(): time.sleep(60)\n"
    )
    pytest_here = f"""#!/bin/sh
case "$*" in *test_cuda.py*) exec {sys.executable} -m pytest -q -p no:cacheprovider -rfE {tmp_path} ;; esac
"""
    done = run(tmp_path, "test", installed={**PROGRAMS, "python": pytest_here}, LIMIT="15")
    assert "TIME  test_cuda (over 15 s)" in done.summary
    assert re.search(r"FAILED \S*test_it.py::test_wrong", done.summary)


def test_results_of_benchmarks_are_copied(tmp_path: Path) -> None:
    """The folder OUT may be all that is left of the machine."""
    results, script = tmp_path / "benches/results", tmp_path / "tools/gpu.sh"
    results.mkdir(parents=True)
    (results / "older.json").write_text("{}")
    os.utime(results / "older.json", (0, 0))
    script.parent.mkdir()
    shutil.copy(ROOT / "tools/gpu.sh", script)
    python = f'{PROGRAM}case "$*" in *bench_ops.py*) echo "{{}}" > benches/results/gpu.json ;; esac\n'
    run(tmp_path, "ops", installed={**PROGRAMS, "python": python}, script=script)
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["gpu.json"]


def test_sanitizers_check_our_kernels_only(tmp_path: Path) -> None:
    """Except initcheck, to which memory that torch's kernels wrote would seem uninitialised."""
    done = run(tmp_path, "sanitize")
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert "--kernel-name kns=wae " in done.call("compute-sanitizer", tool)
    assert "--kernel-name" not in done.call("compute-sanitizer", "initcheck")


def test_every_launch_of_the_profiled_program_is_profiled(tmp_path: Path) -> None:
    """For one image and for 256: two forward kernels, two backward kernels with a reduction each."""
    assert f"--launch-count {2 * (2 + 2 * 2)} " in run(tmp_path, "profile").call("ncu")


def test_the_newest_nsight_compute_is_found_in_its_own_folder(tmp_path: Path) -> None:
    """The toolkit's is not in its folder bin."""
    install(tmp_path / "cuda/nsight-compute-2025.9.1", {"ncu": "#!/bin/sh\nexit 3\n"})
    install(tmp_path / "cuda/nsight-compute-2025.10.0", {"ncu": PROGRAM})
    others = {name: text for name, text in PROGRAMS.items() if name != "ncu"}
    done = run(tmp_path, "profile", installed=others, CUDA_HOME=str(tmp_path / "cuda"))
    assert done.status == 0
    assert "tools/gpu/one_launch.py" in done.call("ncu")


@pytest.mark.parametrize(("mode", "shared"), [("Default", True), ("Exclusive_Process", False)])
def test_only_one_process_uses_a_gpu_in_exclusive_mode(tmp_path: Path, mode: str, shared: bool) -> None:
    """The second of two GPUs is in ``mode``."""
    smi = f'#!/bin/sh\ncase "$*" in *compute_mode*) printf "Default\\n{mode}\\n" ;; esac\n'
    done = run(tmp_path, "test", installed={**PROGRAMS, "nvidia-smi": smi}, WORKERS="4")
    assert (" -n 4 " in done.call("tests/kernels")) == shared
    assert ("one process can use it: WORKERS=1, not 4" in done.summary) != shared


@pytest.mark.parametrize("name", ["LIMIT", "WORKERS"])
def test_a_variable_that_is_not_a_number_is_refused(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, "report", **{name: "2h"})
    assert (done.status, done.calls) == (99, [])
    assert done.summary == f"{name} must be a whole number, got 2h\n"


@pytest.mark.parametrize("stage", ["nothing", "build-test", "build test"])
def test_an_unknown_stage_is_refused(tmp_path: Path, stage: str) -> None:
    done = run(tmp_path, "build", stage)
    assert (done.status, done.calls) == (99, [])
    assert f"no stage {stage}; there are: build test" in done.summary


def test_an_unknown_network_is_refused_before_any_step(tmp_path: Path) -> None:
    done = run(tmp_path, NETWORKS="ResNet50-1 VGG19-1")
    assert (done.status, done.calls) == (99, [])
    assert done.summary.startswith("no network VGG19-1; there are: VGG16-1 ResNet50-1 ")


def test_a_missing_interpreter_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "report", PYTHON="python9")
    assert (done.status, done.summary) == (99, "PYTHON: there is no program python9\n")


def test_its_networks_are_all_those_of_the_benchmark(tmp_path: Path) -> None:
    calls = "\n".join(run(tmp_path, "networks").calls)
    values = {mark.args[0]: mark.args[1] for mark in bench_classifiers.bench_end_to_end.pytestmark}
    settings = [case.id for case in values["setting"] if case.id.startswith("cuda")]
    wanted = {f"{network}-{setting}" for network in values["network"] for setting in settings}
    assert set(re.findall(r"bench_end_to_end\[(.*?)\]", calls)) == wanted
