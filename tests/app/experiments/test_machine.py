"""The machine of a measurement: its CPU, versions, and the load from other programs."""

import io
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wae.experiments import machine


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7763: 64 cores\n", "AMD EPYC 7763: 64 cores"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", "aarch64"),
        (None, "aarch64"),  # not Linux
    ],
)
def test_every_cpu_has_a_name(content: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_, **__) -> io.StringIO:
        if content is None:
            raise FileNotFoundError
        return io.StringIO(content)

    monkeypatch.setattr(machine, "open", opened, raising=False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine.processor() == name


def test_the_gpu_is_named_if_it_was_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert "gpu" not in machine.machine()
    assert "gpu" not in machine.machine(torch.device("cpu"))
    assert machine.machine(torch.device("cuda:1"))["gpu"] == "GPU 1"


def test_the_version_of_a_package_from_another_distribution_is_found(monkeypatch):
    def version(name):
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(machine, "version", version)
    monkeypatch.setattr(machine, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert machine._version("onnxruntime") == "onnxruntime-gpu 1.2"
    assert machine._version("torch") == "1.2"
    monkeypatch.setattr(machine, "packages_distributions", dict)
    assert machine._version("onnxruntime") == "not known"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's record of CPU time")
def test_cpu_time_of_another_process_is_counted():
    others = machine.OtherPrograms()
    subprocess.run([sys.executable, "-c", "for _ in range(10 ** 7): pass"], check=True)
    assert others.cores() > 0.1


def test_cpu_time_of_others_is_all_but_this_programs(monkeypatch):
    """/proc/stat's columns 4 and 5 are idle time, 8 is another machine's, and 1 and 2 include 9 and 10."""
    second = os.sysconf("SC_CLK_TCK")
    before = [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    more = [1, 1, 1, 50, 50, 0.5, 0.5, 50, 50, 50]
    stats = [before, [b + round(m * second) for b, m in zip(before, more, strict=True)]]
    texts = [f"cpu  {' '.join(map(str, stat))}\ncpu0 1 2 3\n" for stat in stats]
    used = [SimpleNamespace(user=user, system=system) for user, system in ((10.0, 3.0), (11.0, 3.5))]
    clock = [5.0, 7.0]
    monkeypatch.setattr(machine.Path, "read_text", lambda path, encoding: texts.pop(0))
    monkeypatch.setattr(machine.os, "times", lambda: used.pop(0))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock.pop(0))
    assert machine.OtherPrograms().cores() == pytest.approx((4 - 1.5) / 2)

    def missing(path, encoding):
        raise FileNotFoundError

    monkeypatch.setattr(machine.Path, "read_text", missing)
    clock.append(0.0)
    assert machine.OtherPrograms().cores() is None
