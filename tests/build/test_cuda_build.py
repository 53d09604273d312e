"""When setup.py builds the CUDA library, and what it says when it cannot. Nothing is built."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import toolchain

NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release {}, V0'\n"


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like CUDA 13.0; none of our variables is set."""
    for name in ("FORCE_CUDA", "WAE_NO_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "USUAL_CUDA_HOME", str(tmp_path / "usual"))
    write_toolkit(tmp_path, "13.0")
    return tmp_path


def write_toolkit(folder: Path, release: str) -> None:
    for part in ("bin", "include"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "include" / "cuda_runtime_api.h").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(release))
    nvcc.chmod(0o755)


def wants(toolkit: Path | None, cuda: str | None = "13.0", gpu: bool = False) -> bool:
    torch = SimpleNamespace(
        version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(is_available=lambda: gpu)
    )
    return toolchain.wants_cuda(torch, SimpleNamespace(CUDA_HOME=toolkit and str(toolkit)))


def test_cuda_is_built_if_there_are_a_toolkit_and_a_gpu(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wants(toolkit, gpu=True)
    assert "TORCH_CUDA_ARCH_LIST" not in os.environ  # torch then builds for the GPU that is there
    assert not wants(toolkit)
    assert not wants(None, gpu=True)
    assert not wants(toolkit, cuda=None)
    monkeypatch.setenv("WAE_NO_CUDA", "1")
    assert not wants(toolkit, gpu=True)


@pytest.mark.parametrize("name", ["FORCE_CUDA", "WAE_NO_CUDA"])
def test_a_wrong_switch_is_refused(toolkit: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "no")
    with pytest.raises(SystemExit, match=f"{name} must be 0 or 1, got 'no'"):
        wants(toolkit)


@pytest.mark.parametrize(
    ("release", "last"), [("13.0", "12.0+PTX"), ("12.8", "12.0+PTX"), ("12.4", "9.0+PTX")]
)
def test_forced_without_a_gpu_it_is_built_for_all_architectures(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch, release: str, last: str
) -> None:
    write_toolkit(toolkit, release)
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # so that the end of the test restores it
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    assert wants(toolkit, cuda=release)
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"].split(";")
    assert architectures[0] == "7.5"
    assert architectures[-1] == last


def test_the_usual_folder_is_used_if_torchs_guess_is_wrong(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nvcc on PATH is a link, torch guesses the folder of the link."""
    monkeypatch.setattr(toolchain, "USUAL_CUDA_HOME", str(toolkit))
    assert wants(toolkit / "bin", gpu=True)


def test_of_several_toolkits_one_of_pytorchs_version_is_used(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("11.8", "12.4", "12.6"):
        write_toolkit(toolkit / f"usual-{release}", release)

    def chosen(cuda: str) -> str | None:
        return toolchain.find_toolkit(str(toolkit), cuda)

    assert chosen("13.0") == str(toolkit)
    assert chosen("12.4") == str(toolkit / "usual-12.4")
    assert chosen("12.8") == str(toolkit / "usual-12.6")
    assert chosen("14.0") == str(toolkit)  # refused later, in one sentence
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert chosen("12.4") == str(toolkit)


def test_the_users_architectures_are_kept(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert wants(toolkit)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6"


def test_another_major_version_is_refused_in_one_sentence(toolkit: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"nvcc belongs to CUDA 13 but PyTorch to CUDA 12; set CUDA_HOME"
    ) as refused:
        wants(toolkit, cuda="12.8", gpu=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("cuda", "why"), [(None, "this PyTorch has no CUDA"), ("13.0", "no CUDA toolkit was found")]
)
def test_forced_without_cuda_is_refused(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, why: str
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=why):
        wants(toolkit / "nothing here", cuda=cuda)
