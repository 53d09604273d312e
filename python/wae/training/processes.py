"""Joining the processes that ``torchrun`` has started; one process by itself needs none of this."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from wae.errors import WaeError
from wae.wording import first_line

_Value = TypeVar("_Value")

_PAUSE = 0.1  # seconds after which a process asks again


class LostProcessError(WaeError):
    """Another of the processes of a training has ended in the middle of it."""


@contextmanager
def joined(device: str | None = None) -> Iterator[torch.device]:
    """Within it, torch.distributed is set up if ``torchrun`` started this process. Yields where to train.

    Args:
        device: None for a GPU if there is one (for each process its own), else the processor.

    Raises:
        ValueError: there is no such device, or a variable of torchrun's is no number.
        LostProcessError: within it, another process has ended.
    """
    _check_environment()
    chosen = _device(device)
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, rank, world = next(rendezvous("env://"))
    # After a restart torchrun's store may still have the addresses of the processes that it has ended.
    own = PrefixStore(_round(store, rank, world), store)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=world)
    try:
        yield chosen
    except RuntimeError as error:
        if not _tells_of_loss(error):
            raise
        why = first_line(error).partition(". ")[0]
        raise LostProcessError(f"another process of this training has ended ({why})") from None
    finally:
        dist.destroy_process_group()


def _tells_of_loss(error: RuntimeError) -> bool:
    """Of another process, in a collective: NCCL has a class for it, gloo the name of its file in the text."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def place() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return place()[0] == 0


def is_alone() -> bool:
    """Whether there is no other process."""
    return place()[1] == 1


def processes() -> int:
    """How many there are."""
    return place()[1]


def of_all_processes(lines: list[str]) -> list[str]:
    """The ``lines`` of all processes, those of the first one first."""
    if not dist.is_initialized():
        return lines
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, lines)
    return [line for some in gathered for line in some]


def summed(numbers: Tensor) -> Tensor:
    """The sum of ``numbers`` over all processes."""
    if dist.is_initialized():
        numbers = numbers.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(numbers)
    return numbers


def agreed(value: _Value) -> _Value:
    """The first process's ``value``, in all of them: as JSON gives it back.

    The first may measure for an hour before it comes to this, and NCCL would give up on the others, waiting
    in a broadcast, after 10 minutes. So it goes through the store, which they ask for as long as it takes.
    """
    if not dist.is_initialized():
        return value
    store = _get_default_store()
    answer = f"answer {store.add(f'questions of {dist.get_rank()}', 1)}"
    if is_first():
        store.set(answer, json.dumps(value))
    while not store.check([answer]):
        time.sleep(_PAUSE)
    agreed_value: _Value = json.loads(store.get(answer))
    return agreed_value


def _round(store: Store, rank: int, world: int) -> str:
    """A name on which all processes of this round agree, and which no earlier round had.

    torchrun has no such name: after a machine was replaced, its count of restarts differs between machines.
    So the first process makes the name. Each of the others queues a question of its own, waits for the
    answer, which is the name, and queues the name to confirm it. The first also answers what processes of
    earlier rounds have left in the queue, so it goes on only when all others have confirmed.
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
    """Raise ValueError for a variable of ``torchrun``'s that is no number: torch would not say which."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name, "0")
        if not text.isdecimal():
            raise ValueError(f"{name} must be a whole number, got {text!r}; torchrun sets it")


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "cuda":
            name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which "meta" has none of
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {name} cannot be used here: {first_line(error)}") from None
    return device
