"""Captures a function on a GPU as a CUDA graph, which launches all of its kernels at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]

_WAITS = "called a synchronizing CUDA operation"  # how torch's warning begins


class WaitsError(RuntimeError):
    """A function waits for the GPU while it runs, so that no CUDA graph can hold it."""


def captured(function: Run, inputs: Sequence[Tensor]) -> Run:
    """``function`` as a CUDA graph, for inputs with the shapes and dtypes of ``inputs``.

    The results are overwritten by the next call. Calls may come from any stream, but only one at a time.

    Raises:
        WaitsError: the function waits for the GPU.
    """
    held = [x.clone() for x in inputs]
    with torch.cuda.device_of(held[0]):
        last = torch.cuda.current_stream()
        replay, outputs = recorded(partial(function, *held))

    def run(*tensors: Tensor) -> Any:
        nonlocal last
        stream = torch.cuda.current_stream(held[0].device)
        if stream != last:  # the last run, and what read its outputs, may not have ended there
            stream.wait_stream(last)
            last = stream
        for mine, given in zip(held, tensors, strict=True):
            mine.copy_(given)
        replay()
        return outputs

    return run


def recorded(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record ``function`` as a CUDA graph on the current device; return what replays it, and its results.

    A replay reads the tensors that ``function`` read, which it keeps, and overwrites the results.

    Raises:
        WaitsError: the function waits for the GPU.
    """
    graph = torch.cuda.CUDAGraph()
    last, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(last)
    with torch.cuda.stream(stream):  # around the capture, too: torch does not leave it if a capture fails
        for _ in range(2):  # the libraries must choose their algorithms before the capture
            function()
        _require_no_waits(function)
        # by default an allocation in any thread of the process would end the capture
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = function()
    last.wait_stream(stream)

    def replay(kept: Callable[[], Any] = function) -> None:  # the graph reads the inputs and weights in it
        graph.replay()

    return replay, outputs


def _require_no_waits(function: Callable[[], Any]) -> None:
    """Run ``function``, and raise WaitsError if it makes this thread wait for the GPU.

    Its capture would fail. After a failed capture some versions of torch (2.10) refuse to draw random numbers
    on the GPU and keep memory there, until the process ends.
    """
    mode, show, own = torch.cuda.get_sync_debug_mode(), warnings.showwarning, threading.get_ident()
    waits: list[str] = []

    def note(message: Warning | str, *rest: Any, **more: Any) -> None:
        if not str(message).startswith(_WAITS):
            show(message, *rest, **more)
        elif threading.get_ident() == own:  # the mode is that of the process
            waits.append(str(message))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("warn")
        warnings.filterwarnings("always", _WAITS)
        warnings.showwarning = note
        try:
            function()
        finally:
            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode(mode)
    if waits:
        raise WaitsError("it waits for the GPU while it computes, as by .item(), which no CUDA graph can")
