"""Several processes: how they join and agree, errors in one of them, and replacing a lost machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from wae.training.processes import _round, broadcast, is_first, joined, processes

PLAN = """
model = "small_vgg_half"
batch = 500
[[stages]]
kind = "classifier"
epochs = 5
learning_rate = 0.05
"""
ADDRESSES = "10.77.0.1", "10.77.0.2"
INTO = "nsenter --user --net --preserve-credentials --target".split()
TORCHRUN = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]


def run_in_two_processes(code: str, folder: Path) -> None:
    (folder / "program.py").write_text(code)
    subprocess.run([*TORCHRUN, str(folder / "program.py")], check=True, timeout=300)


def test_processes_of_a_round_agree_whatever_earlier_rounds_left_in_the_store() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    stores = [server, *(dist.TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(2))]
    names = set()
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            server.queue_push("round", "of a process that was killed while it waited")
            names_here = set(threads.map(_round, stores, range(3), [3] * 3))
            assert len(names_here) == 1
            names |= names_here
    assert len(names) == 3


@pytest.mark.parametrize("missing", [None, "WORLD_SIZE", "MASTER_ADDR"])
def test_a_process_joins_a_group_only_if_all_variables_of_torchrun_are_set(
    monkeypatch: pytest.MonkeyPatch, missing: str | None
) -> None:
    """Schedulers set some of them too. Afterwards there is no group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in start.items():
        monkeypatch.setenv(name, str(value))
    if missing:
        monkeypatch.delenv(missing)
    with joined("cpu") as device:
        assert dist.is_initialized() == (missing is None)
        assert (device.type, is_first(), processes(), broadcast("own")) == ("cpu", True, 1, "own")
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="of its own"), joined("cpu"):
        raise RuntimeError("of its own")


def test_a_process_that_fails_does_not_wait_for_the_others_in_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may wait for it in a collective; NCCL ends a group only together."""
    made, ended, gpu = [], [], torch.device("cuda:1")
    start = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    for name, value in start.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("wae.training.processes.usable_device", lambda name: gpu)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *name, **options: made.append((name, options)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(True))
    with pytest.raises(ValueError, match="of its own"), joined("cuda"):
        raise ValueError("of its own")
    assert not ended
    with joined("cuda"):
        pass
    assert ended
    assert [(name, options["device_id"]) for name, options in made] == [(("nccl",), gpu)] * 2


def test_processes_agree_on_the_value_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    store = dist.HashStore()
    monkeypatch.setattr("wae.training.processes._get_default_store", lambda: store)
    for rank, own in enumerate(("the first's", "the second's")):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        assert (is_first(), processes()) == (rank == 0, 2)
        assert [broadcast(f"{own} {word}") for word in ("yes", "no")] == ["the first's yes", "the first's no"]


LATE = """
import time
from datetime import timedelta
from torch import distributed as dist
from wae.training.processes import broadcast, is_first
dist.init_process_group("gloo", timeout=timedelta(seconds=1))
for value in ("one", ["another"]):
    time.sleep(3 if is_first() else 0)
    assert broadcast(value if is_first() else None) == value
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_others_wait_for_the_first_longer_than_a_collective_does(tmp_path: Path) -> None:
    """NCCL's limit is 10 minutes, but the first process may measure for longer."""
    run_in_two_processes(LATE, tmp_path)


INFINITE = """
import pytest, torch
from torch import distributed as dist, nn
from wae.data.dataset import InMemory
from wae.training.plan import Plan, Stage
from wae.training.processes import is_first, joined
from wae.training.trainer import DivergedError, train

class Infinite(torch.autograd.Function):
    forward = staticmethod(lambda context, scores: scores.clone() if is_first() else scores * torch.inf)
    backward = staticmethod(lambda context, gradient: torch.ones_like(gradient))

class Network(nn.Sequential):
    def forward(self, images):
        return Infinite.apply(super().forward(images.float()))

with joined("cpu"):
    images = torch.ones(8, 3, 4, 4, dtype=torch.uint8)
    data = InMemory(images, torch.arange(8) % 2, ("a", "b"), False, 0)
    with pytest.raises(DivergedError):
        plan = Plan("x", (Stage("classifier", 1, 0.1),), 8)
        train(Network(nn.Flatten(), nn.Linear(48, 2)), plan, data, data)
    both = torch.ones(())
    dist.all_reduce(both)
    assert both == 2
"""


@pytest.mark.slow
def test_an_infinite_loss_in_one_process_ends_the_training_in_all(tmp_path: Path) -> None:
    """Otherwise one process begins the next trial of wae accelerate while the other waits in this one."""
    run_in_two_processes(INFINITE, tmp_path)


DIFFERENT = """
import pytest, torch
from torch import nn
from wae.data.dataset import DatasetError, InMemory
from wae.training.plan import Plan, Stage
from wae.training.processes import is_first, joined
from wae.training.trainer import train

class Network(nn.Sequential):
    def forward(self, images):
        return super().forward(images.float())

def images(count, labels):
    made = torch.ones(count, 3, 4, 4, dtype=torch.uint8)
    return InMemory(made, torch.arange(count) % 2, labels, False, 0)

with joined("cpu"):
    plan, same = Plan("x", (Stage("classifier", 1, 0.1),), 8), images(8, "ab")
    renamed, fewer = (same if is_first() else other for other in (images(8, "ba"), images(6, "ab")))
    for training, test, kind, what in (
        (same, same, "", ""),
        (renamed, same, "training", "labels "),
        (same, renamed, "test", "labels "),
        (fewer, same, "training", "number of images .6, not 8., "),
    ):
        model = Network(nn.Flatten(), nn.Linear(48, 2))
        if not kind:
            train(model, plan, training, test)
            continue
        wanted = f"^the {kind} images of process 1 are not those of the first: they differ in .*{what}"
        with pytest.raises(DatasetError, match=wanted):
            train(model, plan, training, test)
"""


@pytest.mark.slow
def test_processes_with_different_images_do_not_train(tmp_path: Path) -> None:
    """Machines may have their own copies. Each process would take its share of its own images and labels."""
    run_in_two_processes(DIFFERENT, tmp_path)


EVALUATED = """
import os, sys
from pathlib import Path
import torch
from PIL import Image
from wae import cli
from wae.models.registry import build
from wae.storage.checkpoint import Input, save_classifier

folder = Path(__file__).parent / os.environ["RANK"]
folder.mkdir()
for number in range(8 - int(os.environ["RANK"])):
    kind = folder / "data" / "val" / "ab"[number % 2]
    kind.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (28, 28)).save(kind / f"{number}.png")
torch.manual_seed(0)
save_classifier(folder / "it.safetensors", build("small_vgg", 2), "small_vgg", ["a", "b"], Input(28, 28))
sys.stderr = open(folder / "said", "w")
arguments = "eval", folder / "it.safetensors", "--data", folder / "data", "--seconds", "0.01"
assert cli.main([str(one) for one in arguments]) == 1
"""


@pytest.mark.slow
def test_processes_with_different_images_do_not_evaluate(tmp_path: Path) -> None:
    """The accuracy would be that of a part of each one's images, some of them counted twice."""
    run_in_two_processes(EVALUATED, tmp_path)
    wanted = (
        "wae: the test images of process 1 are not those of the first: they differ in file names, "
        "number of images (7, not 8), targets\n"
    )
    assert [(tmp_path / rank / "said").read_text() for rank in "01"] == [wanted, wanted]


LOST = """
import os, pytest, torch
from torch import distributed as dist
from wae.training.processes import LostProcessError, is_first, joined
with pytest.raises(LostProcessError, match="^another process .* has ended .*[^.]\\)$"), joined("cpu"):
    if not is_first():
        os._exit(0)
    dist.all_reduce(torch.ones(()))
"""


@pytest.mark.slow
def test_a_lost_process_is_reported_in_one_line(tmp_path: Path) -> None:
    """Not as gloo's traceback."""
    run_in_two_processes(LOST, tmp_path)


@pytest.mark.parametrize("name", [None, "cuda"])
def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """The error tells, because no machine has that many."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "120")
    with pytest.raises(ValueError, match="device cuda:120 cannot be used here"), joined(name):
        pass


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
def test_a_wrong_number_from_torchrun_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "-1")
    with pytest.raises(ValueError, match=f"^{name} must be a whole number, got '-1'"), joined("cpu"):
        pass


# ----------------------------------------------------------------------------------------- two machines


@pytest.fixture
def machines() -> Iterator[list[int]]:
    """Two connected network namespaces, as the ids of the processes that hold them open."""
    if missing := [program for program in ("ip", "nsenter", "unshare") if shutil.which(program) is None]:
        pytest.skip(f"needs {', '.join(missing)} (util-linux, iproute2)")
    held = [network("unshare", "--user", "--map-root-user")]
    try:
        held.append(network(*INTO, str(held[0].pid), "unshare"))
        first, second = (process.pid for process in held)
        on(first, f"ip link add eth0 type veth peer name eth0 netns {second}")
        for machine, address in zip((first, second), ADDRESSES, strict=True):
            on(machine, f"ip address add {address}/24 dev eth0")
            on(machine, "ip link set eth0 up")
        yield [first, second]
    finally:
        for process in held:
            process.kill()
            process.communicate()


def network(*unshare: str) -> subprocess.Popen[str]:
    """A process that holds a new network namespace open."""
    command = [*unshare, "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "up\n":
        pytest.skip(f"no network namespaces here: {process.communicate()[1].strip()}")
    return process


def on(machine: int, command: str) -> None:
    done = subprocess.run(
        [*INTO, str(machine), *command.split()], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no network between namespaces here: {command}: {done.stderr.strip()}")


class Node:
    """torchrun on one of the machines. When it is killed, so are all of its processes."""

    def __init__(self, machine: int, number: int, hosts: Path, training: list[str]) -> None:
        torchrun = (
            f"-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d "
            f"--rdzv-endpoint {ADDRESSES[0]}:29400 --local-addr {ADDRESSES[number]} "
            f"--rdzv-conf is_host={int(number == 0)},keep_alive_interval=1"
        )
        alone = "unshare --pid --fork --kill-child --mount sh -c".split()
        # Names for the addresses: there is no server to look them up.
        run = f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"'
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        command = [*INTO, str(machine), *alone, run, sys.executable, *torchrun.split(), *training]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def ended(self) -> str:
        """Wait until it has ended; what it printed."""
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0
        return output

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_replacing_a_lost_machine_does_not_change_the_losses(machines: list[int], tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    hosts = tmp_path / "hosts"
    own = f"127.0.0.1 localhost {socket.gethostname()}\n"
    hosts.write_text(own + "".join(f"{address} {address}.example\n" for address in ADDRESSES))
    options = f"-m wae.cli train --data digits --device cpu --resume --plan {tmp_path}/plan.toml -o"
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    start = partial(Node, hosts=hosts, training=[*options.split(), str(out)])
    nodes = [start(machine, number) for number, machine in enumerate(machines)]
    try:
        deadline = time.monotonic() + 300
        while len(losses(out)) < 2:
            assert all(node.process.poll() is None for node in nodes)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        nodes[1].kill()
        nodes[1] = start(machines[1], 1)
        output = "".join(node.ended() for node in nodes)
    finally:
        for node in nodes:
            node.kill()
    assert output.count("resuming after stage 1/1") == 1

    subprocess.run(
        [*TORCHRUN, *options.split(), str(undisturbed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    assert losses(out) == losses(undisturbed)
    assert len(losses(out)) == 5


def losses(folder: Path) -> list[float]:
    """The losses of the epochs that have ended."""
    log = folder / "log.jsonl"
    return (
        [json.loads(line)["losses"]["loss"] for line in log.read_text().splitlines()] if log.exists() else []
    )
