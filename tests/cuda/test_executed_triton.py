"""The compiled Triton kernels, executed on the CPU with the launcher's plans and arguments, vs. the oracle.

To detect missing barriers, threads run in random order between barriers, and outputs and slabs start as NaN.
(Slabs are in global memory, in which the tool does not detect races.) A test removes barriers to check this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ahead_of_time import Compiled, compile_launch
from cases import LAYOUTS, affine, decoder, encoder, image_of, set_to_nan_beside_infinity, widened
from compare import assert_close
from ptx_machine import Counts, KernelError, load
from torch import Tensor

from wae_kernels import reference
from wae_kernels.parameters import DecoderParameters, EncoderParameters
from wae_kernels.triton.kernels import decode_kernel, encode_kernel
from wae_kernels.triton.launch import Launch, launch_decode, launch_encode
from wae_kernels.triton.plan import Device, Tile

pytestmark = pytest.mark.slow  # minutes, on two cores

ARITHMETIC = {
    "float16": (torch.float16, False, 2e-3, "m16n8k16.f32.f16"),
    "bfloat16": (torch.bfloat16, False, 1.5e-2, "m16n8k16.f32.bf16"),
    "tf32": (torch.float32, True, 1e-3, "m16n8k8.f32.tf32"),
    "float32": (torch.float32, False, 1e-6, None),
}
"""Dtype, whether tf32 is allowed, the specification's tolerance, and the tensor cores' instruction."""


def device(arch: int) -> Device:
    """A GPU so small that small images have more tiles than programs."""
    return Device("two multiprocessors", arch, 2, 60_000, 1 << 20)


@pytest.fixture(autouse=True)
def plain_float32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def execute(compiled: Compiled, launch: Launch, seed: int = 0, ptx: str = "") -> Counts:
    """Execute the launch, with threads in an order that ``seed`` decides."""
    for tensor in (*launch.outputs, compiled.arguments["slab"]):
        tensor.fill_(torch.nan)
    metadata = compiled.kernel.metadata
    kernel = load(ptx or compiled.ptx)[metadata.name]
    arguments = [*compiled.arguments.values()]
    arguments += [0] * (len(kernel.params) - len(arguments))  # Triton's scratch memory, which is not used
    return kernel.launch(
        launch.plan.programs,
        32 * metadata.num_warps,
        arguments,
        shared_bytes=metadata.shared,
        seed=seed,
    )


def encode_case(
    dtype: torch.dtype,
    arch: int = 80,
    layout: str = "nchw",
    of_bytes: bool = False,
    tile: Tile | None = None,
    parameter_dtype: torch.dtype | None = None,
) -> tuple[Launch, tuple[Tensor, ...]]:
    """The launch for a small image and results of ``dtype``, and the expected results."""
    own = parameter_dtype or dtype
    image = LAYOUTS[layout](image_of(1, 21, 70, torch.uint8 if of_bytes else own))
    parameters, scale_shift = encoder(own), affine(of_bytes=of_bytes) if of_bytes else (None, None)
    launch = launch_encode(
        image, EncoderParameters(*parameters), *scale_shift, dtype, device=device(arch), tile=tile
    )
    return launch, reference.encode(*widened([image, *parameters, *scale_shift]))


def decode_case(
    dtype: torch.dtype,
    arch: int = 80,
    layout: str = "nchw",
    parameter_dtype: torch.dtype | None = None,
) -> tuple[Launch, tuple[Tensor, ...]]:
    low, high = (LAYOUTS[layout](image_of(1, 11, 35, dtype)) for _ in range(2))
    parameters = decoder(parameter_dtype or dtype)
    launch = launch_decode(low, high, DecoderParameters(*parameters), (21, 70), device=device(arch))
    return launch, (reference.decode(*widened([low, high, *parameters]), (21, 70)),)


OPS: dict[str, Any] = {"encode": (encode_case, encode_kernel), "decode": (decode_case, decode_kernel)}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_launch(op: str, arithmetic: str) -> None:
    dtype, torch.backends.cudnn.allow_tf32, limit, instruction = ARITHMETIC[arithmetic]
    make, kernel = OPS[op]
    launch, expected = make(dtype)
    assert launch.plan.tiles > launch.plan.programs
    compiled = compile_launch(kernel, launch, 80)
    compiled.assert_within(launch.plan.tile, 80, dtype.itemsize)
    for seed in (0, 1):
        counts = execute(compiled, launch, seed)
        for out, ref in zip(launch.outputs, expected, strict=True):
            assert_close(out, ref, limit)
        assert set(counts.tensor) == ({instruction} if instruction else set())
        # Each number of an output is written once, and outputs are not read.
        names = list(compiled.arguments)
        for name, out in zip(("low", "high") if op == "encode" else ("image",), launch.outputs, strict=True):
            assert counts.by_buffer[f"arg {names.index(name)}"] == (0, out.numel() * out.element_size())


@pytest.mark.parametrize("op", OPS)
def test_no_nan_becomes_infinity_in_tf32(op: str) -> None:
    """Tensor cores do not read the low 13 bits of a number, which may be all that tells it from infinity."""
    torch.backends.cudnn.allow_tf32 = True
    for in_a_weight in (False, True):
        if op == "encode":
            images, parameters = [image_of(1, 21, 70)], encoder()
            launch = launch_encode(*images, EncoderParameters(*parameters), device=device(80))
        else:
            images, parameters = [image_of(1, 11, 35) for _ in range(2)], decoder()
            launch = launch_decode(*images, DecoderParameters(*parameters), (21, 70), device=device(80))
        if in_a_weight:
            set_to_nan_beside_infinity(parameters[6 if op == "encode" else 8][1, 5, 0, 1])
        else:
            set_to_nan_beside_infinity(images[-1][0, 1, 2, 6])
            parameters[0 if op == "encode" else 2].abs_()
        execute(compile_launch(OPS[op][1], launch, 80), launch)
        if op == "encode":
            expected = reference.encode(*widened([*images, *parameters]))
        else:
            expected = (reference.decode(*widened([*images, *parameters]), (21, 70)),)
        assert expected[0].isnan().any()
        for out, ref in zip(launch.outputs, expected, strict=True):
            assert torch.equal(out.isnan(), ref.isnan())


@pytest.mark.parametrize("op", OPS)
def test_float32_parameters(op: str) -> None:
    """With 16-bit results, as inside autocast: the products are 16-bit, too."""
    dtype, _, limit, instruction = ARITHMETIC["float16"]
    make, kernel = OPS[op]
    launch, expected = make(dtype, parameter_dtype=torch.float32)
    counts = execute(compile_launch(kernel, launch, 80), launch)
    for out, ref in zip(launch.outputs, expected, strict=True):
        assert out.dtype == dtype
        assert_close(out, ref, limit)
    assert set(counts.tensor) == {instruction}


@pytest.mark.parametrize("layout", ["sliced", "sliced_channels_last"])
def test_bytes_and_layouts(layout: str) -> None:
    """Every access is inside the image, not only inside the larger memory around it."""
    launch, expected = encode_case(torch.float16, layout=layout, of_bytes=True, tile=Tile(32, 4, 4))
    execute(compile_launch(encode_kernel, launch, 80), launch)
    for out, ref in zip(launch.outputs, expected, strict=True):
        assert_close(out, ref, 2e-3)


@pytest.mark.parametrize("op", OPS)
def test_sm_90(op: str) -> None:
    make, kernel = OPS[op]
    launch, expected = make(torch.float16, 90)
    execute(compile_launch(kernel, launch, 90), launch)
    for out, ref in zip(launch.outputs, expected, strict=True):
        assert_close(out, ref, 2e-3)


@pytest.mark.parametrize(
    "number", [0, 2], ids=["after the image is staged", "between a group's reads and writes"]
)
def test_missing_barrier_is_detected(number: int) -> None:
    """One of the kernel's own barriers is removed. (For some others, a barrier from Triton would suffice.)"""
    launch, _ = encode_case(torch.float16)
    compiled = compile_launch(encode_kernel, launch, 80)
    lines = compiled.ptx.split("\n")
    own = [
        i
        for i, line in enumerate(lines)
        if "bar.sync" in line and source_line(lines[:i]).endswith("debug_barrier()")
    ]
    assert len(own) == 6
    del lines[own[number]]
    try:
        execute(compiled, launch, ptx="\n".join(lines))
    except KernelError as error:
        assert "barrier is missing" in str(error)  # noqa: PT017  (either an error or wrong results)
    else:
        assert launch.outputs[0].isnan().any()


def test_page_has_these_plans() -> None:
    from triton_counts import PAGE, plans_table

    how = "PYTHONPATH=tools:tests/cuda python tests/support/triton_counts.py --write updates it"
    assert plans_table() in PAGE.read_text(encoding="utf-8"), how


def source_line(before: list[str]) -> str:
    """The line of kernels.py for an instruction, given the PTX lines before it."""
    location = next(re.match(r"\s*\.loc\s+\d+\s+(\d+)", line) for line in reversed(before) if ".loc" in line)
    assert location
    with open(encode_kernel.fn.__code__.co_filename, encoding="utf-8") as file:
        return file.read().split("\n")[int(location[1]) - 1].strip()
