"""The lock that is held while something changes the whole process, and not only the calling thread."""

from __future__ import annotations

import threading

ONE_THREAD = threading.RLock()
"""Held while a network is traced, prepared, loaded, saved or exported.

torch's tracers replace methods of ``nn.Module``, ``torch.export`` switches oneDNN off, loggers get other
levels, and ``warnings`` other filters. Each of these restores afterwards what it found. If two threads did
that at once, tracing would fail, or the second would restore what the first had set, for good.
"""
