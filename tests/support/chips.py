"""Shared memory in kilobytes by compute capability (75 is 7.5), from CUDA's programming guide."""

from __future__ import annotations

OF_MULTIPROCESSOR = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
RESERVED = {capability: int(capability >= 80) for capability in OF_MULTIPROCESSOR}
"""What the system reserves for each block, in addition to what the block uses."""
OF_BLOCK = {capability: total - RESERVED[capability] for capability, total in OF_MULTIPROCESSOR.items()}
"""The most that one block can use."""
