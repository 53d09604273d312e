"""Joins the processes that ``torchrun`` started. A single process needs none of this."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from wae.data.dataset import DatasetError
from wae.errors import UsageError, WaeError
from wae.wording import first_line

from .plan import changed

_Value = TypeVar("_Value")

_PAUSE = 0.1  # seconds between two queries of the store


class LostProcessError(WaeError):
    """Another process of the training has ended unexpectedly."""


@contextmanager
def joined(device: str | None = None) -> Iterator[torch.device]:
    """In this block torch.distributed is set up if ``torchrun`` started this process. Yields the device.

    Args:
        device: None for a GPU if there is one (each process gets its own), otherwise the CPU.

    Raises:
        ValueError: see :func:`usable_device`; or a variable that torchrun sets is not a number.
        LostProcessError: another process ended during the block.
    """
    _check_environment()
    chosen = usable_device(device)
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, rank, world = next(rendezvous("env://"))
    # After a restart torchrun's store may still hold the addresses of the processes that were ended.
    own = PrefixStore(_round(store, rank, world), store)
    on_gpu, done = chosen.type == "cuda", False
    device_id = chosen if on_gpu else None  # without it torch warns at each barrier
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, device_id=device_id)
    try:
        yield chosen
        done = True
    except RuntimeError as error:
        if not _tells_of_loss(error):
            raise
        why = first_line(error).partition(". ")[0]
        raise LostProcessError(f"another process of this training has ended ({why})") from None
    finally:
        # NCCL waits here for the other processes, which after an error in this one may wait for it elsewhere:
        # it could not report the error, nor end, so that torchrun ends the others.
        if done or not on_gpu:
            dist.destroy_process_group()


def _tells_of_loss(error: RuntimeError) -> bool:
    """Whether a collective failed because of another process.

    NCCL raises a special class; gloo's message contains the path of its source file.
    """
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and the number of processes, torch.distributed's world size."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank_and_world()[0] == 0


def processes() -> int:
    """The number of processes."""
    return rank_and_world()[1]


def gathered(lines: list[str]) -> list[str]:
    """The ``lines`` of all processes, in the order of their ranks."""
    if not dist.is_initialized():
        return lines
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, lines)
    return [line for some in gathered for line in some]


def summed(numbers: Tensor) -> Tensor:
    """The sum of ``numbers`` over all processes. It may be on another device, and ``numbers`` may change."""
    if dist.is_initialized():
        numbers = numbers.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(numbers)
    return numbers


def broadcast(value: _Value) -> _Value:
    """The first process's ``value``, in all processes, after a round trip through JSON.

    The first process may measure for an hour before it gets here, but a broadcast with NCCL would time out in
    the others after 10 minutes. So the value goes through the store, which they poll for as long as it takes.
    """
    if not dist.is_initialized():
        return value
    store = _get_default_store()
    answer = f"answer {store.add(f'questions of {dist.get_rank()}', 1)}"
    if is_first():
        store.set(answer, json.dumps(value))
    while not store.check([answer]):
        time.sleep(_PAUSE)
    received: _Value = json.loads(store.get(answer))
    return received


def require_same(kind: str, data: Mapping[str, Any]) -> None:
    """Raise DatasetError, in all processes, unless they have the same images, of which each takes its share.

    Args:
        kind: "training" or "test", for the error.
        data: the :func:`wae.data.loading.fingerprint` of this process's images.
    """
    different = ", ".join(changed(data, broadcast(data)))
    rank, _ = rank_and_world()
    others = f"the {kind} images of process {rank} are not those of the first: they differ in {different}"
    if found := gathered([others] if different else []):
        raise DatasetError(found[0])


def _round(store: Store, rank: int, world: int) -> str:
    """A name that all processes of this round share, and that no earlier round had.

    torchrun has no such name: after a machine was replaced, its restart count differs between machines. So
    the first process creates the name. Each other process queues its own question, waits for the answer,
    which is the name, and queues the name to confirm it. The queue may still hold questions of earlier
    rounds, which the first process answers too; it continues only when all others have confirmed.
    """
    own = uuid4().hex
    if rank > 0:
        store.queue_push("round", own)
        name: str = store.get(own).decode()
        store.queue_push("round", name)
        return name
    missing = world - 1
    while missing:
        asked = store.queue_pop("round").decode()
        if asked == own:
            missing -= 1
        else:
            store.set(asked, own)
    return own


def _check_environment() -> None:
    """Raise ValueError if a variable that ``torchrun`` sets is not a number; torch would not name it."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name, "0")
        if not text.isdecimal():
            raise ValueError(f"{name} must be a whole number, got {text!r}; torchrun sets it")


def named_device(name: str) -> torch.device:
    """The device called ``name``, which is not used. Raises UsageError if no machine has such a device."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name}: {first_line(error)}") from None


def usable_device(name: str | None) -> torch.device:
    """The device called ``name``: see :func:`joined`. Raises ValueError if it cannot be used here.

    It is a UsageError if no machine has such a device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = named_device(name)
    try:
        torch.empty(1, device=device).item()  # fails on "meta"
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {name} cannot be used here: {first_line(error)}") from None
    return device
