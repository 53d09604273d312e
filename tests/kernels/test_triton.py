"""The Triton kernels without a GPU: plans, results of Triton's interpreter, resources of the compiled code.

The interpreter must be chosen before the kernels are imported. `TRITON_INTERPRET=1 pytest` on this file runs
the tests marked `interpreted`; an ordinary run starts this in a process of its own. The results of the
compiled code are tested in cuda/test_executed_triton.py.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cases import (
    LAYOUTS,
    RESULT_OPTIONS,
    affine,
    decoder,
    encoder,
    far_apart,
    halved,
    image_of,
    is_laid_out_like,
    scattered,
    size_name,
    widened,
)
from compare import assert_close, relative_error, tolerance
from programs import run_interpreted, run_program
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wae_kernels import _load, backends, reference
from wae_kernels import triton as wae_triton
from wae_kernels.parameters import DecoderParameters, EncoderParameters
from wae_kernels.triton import launch, stored
from wae_kernels.triton.kernels import decode_kernel, encode_kernel
from wae_kernels.triton.plan import PRECISIONS, Device, Tile, plan, tiles_for

if TYPE_CHECKING:
    from ahead_of_time import Compiled

interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="run by test_in_the_interpreter")
compiled = pytest.mark.skipif(launch.INTERPRETED, reason="needs the compiler")

GPUS = [
    Device("A100", 80, 108, 164 << 10, 40 << 20),
    Device("RTX 3090", 86, 82, 100 << 10, 6 << 20),
    Device("L4", 89, 58, 100 << 10, 48 << 20),
    Device("H100", 90, 132, 228 << 10, 50 << 20),
    Device("B200", 100, 148, 228 << 10, 126 << 20),
    Device("RTX 5090", 120, 170, 100 << 10, 96 << 20),
]
SHAPES = [
    (1, 3, 1, 1),
    (1, 3, 224, 224),
    (64, 3, 224, 224),
    (3, 3, 225, 223),
    (1, 3, 6, 4099),
    (8, 3, 4000, 6000),
]

# --------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_plan(gpu: Device, precision: str, shape: Sequence[int]) -> None:
    batch, _, height, width = shape
    made = plan(batch, height, width, precision, gpu)
    tile = made.tile
    assert tile in tiles_for(precision, gpu.capability)
    # The tiles cover the image, and none is entirely outside.
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    assert (made.tiles_down - 1) * tile.half_rows < half_height <= made.tiles_down * tile.half_rows
    assert (made.tiles_across - 1) * tile.half_columns < half_width <= made.tiles_across * tile.half_columns
    assert made.tiles == batch * made.tiles_down * made.tiles_across
    assert 1 <= made.programs <= made.tiles
    element_bytes = 2 if precision == "half" else 4
    slab_bytes = made.slab_elements * element_bytes
    each = -(-made.programs // gpu.multiprocessors)
    # The slabs exceed three quarters of the cache only if those of the smallest tile do.
    smallest = min(t.slab for t in tiles_for(precision, gpu.capability)) * element_bytes
    assert slab_bytes <= 0.75 * gpu.l2_bytes or smallest * made.programs > 0.75 * gpu.l2_bytes
    assert each * tile.registers * 32 * tile.warps <= 65536
    assert each * (tile.shared_bytes(element_bytes) + 1024) <= gpu.shared_bytes
    # Slabs are smaller than 16 channels of the full-resolution image.
    if batch * height * width >= 10**6:
        assert slab_bytes < 16 * element_bytes * batch * height * width


def test_plan_fills_the_gpu_with_one_small_image() -> None:
    assert plan(1, 224, 224, "half", GPUS[0]).tiles >= GPUS[0].multiprocessors // 2


def test_plan_with_a_number_of_tiles_beyond_32_bits() -> None:
    assert plan(2**20, 2**20, 3, "half", GPUS[0]).tiles > 2**31


# -------------------------------------------------------------------------------------------- interpreter


@pytest.mark.slow
@compiled
def test_in_the_interpreter() -> None:
    """Runs the tests marked `interpreted` in a process with Triton's interpreter."""
    printed = run_interpreted(__file__)
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 40, printed[-2000:]


SMALL = Tile(16, 4, 4)
"""4 x 4 half-resolution pixels: the interpreter's time for a tile hardly depends on the tile's size."""


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.stored, "choice", lambda *_: SMALL)


@pytest.fixture(autouse=True)
def plain_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "tf32_allowed", lambda: False)


def check_encode(image: Tensor, parameters: Sequence[Tensor], *scale_shift: Tensor) -> None:
    outputs = torch.ops.wae.encode_triton(image, *parameters, *scale_shift)
    expected = reference.encode(*widened([image, *parameters, *scale_shift]))
    for name, out, ref in zip(("low", "high"), outputs, expected, strict=True):
        assert out.dtype == parameters[0].dtype
        assert is_laid_out_like(out, image)
        assert_close(out, ref, tolerance(out.dtype), name)


def check_decode(low: Tensor, high: Tensor, parameters: Sequence[Tensor], size: Sequence[int]) -> None:
    out = torch.ops.wae.decode_triton(low, high, *parameters, size)
    assert out.dtype == low.dtype
    assert is_laid_out_like(out, low)
    assert_close(
        out, reference.decode(*widened([low, high, *parameters]), size), tolerance(low.dtype), "image"
    )


DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# One pixel; one tile; a tile and a pixel in either direction; a strip. Other tests have 2 x 2 partial tiles.
SIZES = [(1, 1), (8, 8), (9, 8), (7, 9), (1, 17)]


@interpreted
@pytest.mark.usefixtures("small_tiles", "poisoned_memory")
class TestInterpreted:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("of_bytes", [False, True], ids=["numbers", "bytes"])
    def test_encode(self, dtype: torch.dtype, of_bytes: bool) -> None:
        image = image_of(1, 11, 10, torch.uint8 if of_bytes else dtype)
        check_encode(image, encoder(dtype), *(affine(of_bytes=True) if of_bytes else ()))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_decode(self, dtype: torch.dtype) -> None:
        check_decode(image_of(1, 6, 5, dtype), image_of(1, 6, 5, dtype), decoder(dtype), (11, 10))

    @pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
    @pytest.mark.parametrize("of_bytes", [False, True], ids=["numbers", "bytes"])
    def test_encode_with_float32_parameters(self, dtype: torch.dtype, of_bytes: bool) -> None:
        """As inside autocast: image and parameters are float32, and are converted to the results' dtype."""
        arguments = [image_of(1, 11, 10, torch.uint8 if of_bytes else torch.float32), *encoder()]
        arguments += affine(of_bytes=of_bytes)
        outputs = wae_triton.encode(*arguments, dtype=dtype)
        for out, ref in zip(outputs, reference.encode(*widened(arguments)), strict=True):
            assert out.dtype == dtype
            assert_close(out, ref, tolerance(dtype))

    @pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
    def test_decode_with_float32_parameters(self, dtype: torch.dtype) -> None:
        low, high = (image_of(1, 6, 5, dtype) for _ in range(2))
        check_decode(low, LAYOUTS["sliced_channels_last"](high), decoder(), (11, 10))

    def test_tf32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The interpreter multiplies in float32; the error shows that operands are rounded, not truncated."""
        monkeypatch.setattr(launch, "tf32_allowed", lambda: True)
        image, parameters = image_of(1, 8, 8), encoder()
        outputs = torch.ops.wae.encode_triton(image, *parameters)
        for out, ref in zip(outputs, reference.encode(*widened([image, *parameters])), strict=True):
            assert 1e-4 < relative_error(out, ref) < 7e-4

    @pytest.mark.parametrize("size", SIZES, ids=size_name)
    def test_sizes(self, size: tuple[int, int]) -> None:
        check_encode(image_of(1, *size), encoder())
        low, high = (image_of(1, *halved(size)) for _ in range(2))
        check_decode(low, high, decoder(), size)

    @pytest.mark.parametrize(
        "layout", [name for name in LAYOUTS if "expanded" not in name] + ["expanded_value"]
    )
    def test_layouts(self, layout: str) -> None:
        check_encode(LAYOUTS[layout](image_of(2, 4, 3)), encoder(), *affine(torch.float64))
        low, high = LAYOUTS[layout](image_of(2, 3, 2)), image_of(2, 3, 2)
        check_decode(low, high, decoder(), (5, 4))
        if layout == "sliced":
            check_decode(high, low, decoder(), (6, 3))

    @pytest.mark.parametrize("scale", [True, False], ids=["scale", "shift"])
    def test_scale_or_shift_alone(self, scale: bool) -> None:
        values = affine(torch.float32)[0 if scale else 1]
        check_encode(image_of(1, 3, 4), encoder(), *((values, None) if scale else (None, values)))

    @pytest.mark.parametrize("layout", ["channels_last", "scattered"])
    def test_parameters_in_other_layouts(self, layout: str) -> None:
        def lay(p: Tensor) -> Tensor:
            if layout == "scattered":
                return scattered(p)
            return p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p

        check_encode(image_of(1, 5, 4), [lay(p) for p in encoder()])
        check_decode(image_of(1, 3, 2), image_of(1, 3, 2), [lay(p) for p in decoder()], (5, 4))

    def test_offsets_beyond_32_bits(self) -> None:
        check_encode(far_apart(image_of(1, 2, 4, torch.uint8)), encoder(), *affine(of_bytes=True))

    def test_empty_batch(self) -> None:
        low, high = torch.ops.wae.encode_triton(torch.empty(0, 3, 5, 4), *encoder())
        assert low.shape == high.shape == (0, 3, 3, 2)
        assert torch.ops.wae.decode_triton(low, high, *decoder(), [5, 4]).shape == (0, 3, 5, 4)

    def test_reference_runs_if_there_is_no_kernel(self) -> None:
        for dtype, width in ((torch.float64, 16), (torch.float32, 8)):
            image, parameters = image_of(1, 5, 4, dtype), encoder(dtype, width=width)
            for out, ref in zip(
                torch.ops.wae.encode_triton(image, *parameters),
                reference.encode(image, *parameters),
                strict=True,
            ):
                assert torch.equal(out, ref)

    def test_infinities_reach_only_the_outputs_that_read_them(self) -> None:
        """The zeros that pad a filter to 16 columns are not multiplied by pixels outside the filter."""
        image, parameters = image_of(1, 8, 24), encoder()
        image[..., 12] = torch.inf
        outputs = torch.ops.wae.encode_triton(image, *parameters)
        for out, ref in zip(outputs, reference.encode(image, *parameters), strict=True):
            assert torch.equal(out.isfinite(), ref.isfinite())

    def test_deterministic(self) -> None:
        image, parameters = image_of(1, 9, 9, torch.float16), encoder(torch.float16)
        first, second = (torch.ops.wae.encode_triton(image, *parameters) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_tune(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.undo()  # no small_tiles: the stored choices decide
        monkeypatch.setenv("WAE_TRITON_TILES", str(tmp_path / "folder" / "tiles.json"))
        seen: list[Tile] = []

        def measure(run: Any) -> float:
            seen.append(run.keywords["tile"])
            return -len(seen)  # so that the last one is the fastest

        monkeypatch.setattr(stored, "candidates", lambda _: [Tile(64, 8, 1, 1), Tile(64, 8, 1, 2)])
        arguments = (image_of(1, 2, 2), *encoder())
        assert wae_triton.tune("encode", *arguments, measure=measure) == seen[-1] == Tile(64, 8, 1, 2)
        call = arguments[0], EncoderParameters(*arguments[1:])
        assert launch.launch_encode(*call).plan.tile == seen[-1]
        monkeypatch.setattr(stored, "candidates", lambda _: [Tile(64, 8, 1, 2), Tile(64, 8, 1, 1)])
        in_half = (*arguments, None, None, torch.float16)  # as inside autocast
        wae_triton.tune("encode", *in_half, measure=measure)
        assert launch.launch_encode(*call, dtype=torch.float16).plan.tile == seen[-1] == Tile(64, 8, 1, 1)
        assert launch.launch_encode(*call).plan.tile == Tile(64, 8, 1, 2)
        halves = [image_of(1, 1, 1, torch.float16) for _ in range(2)]  # with float32 parameters
        wae_triton.tune("decode", *halves, *decoder(), (2, 2), measure=measure)
        assert launch.launch_decode(*halves, DecoderParameters(*decoder()), (2, 2)).plan.tile == seen[-1]

    def test_tune_measures_on_the_device_of_its_arguments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Triton's do_bench times the current device, which may be another GPU."""
        current: list[Tensor] = []

        @contextmanager
        def device_of(tensor: Tensor) -> Iterator[None]:
            current.append(tensor)
            yield
            current.remove(tensor)

        monkeypatch.setattr(torch.cuda, "device_of", device_of)
        monkeypatch.setattr(stored, "candidates", lambda _: [SMALL])
        monkeypatch.setattr(stored, "store", lambda *_: None)
        measured: list[bool] = []
        parameters = encoder()
        wae_triton.tune(
            "encode", image_of(1, 2, 2), *parameters, measure=lambda _: measured.append(bool(current)) or 0.0
        )
        assert measured == [True]

    def test_tune_refuses_what_it_cannot_run(self) -> None:
        with pytest.raises(ValueError, match="op must be encode or decode, got 'encoder'"):
            wae_triton.tune("encoder", image_of(1, 2, 2), *encoder())
        with pytest.raises(ValueError, match="got 0 images"):
            wae_triton.tune("encode", image_of(0, 2, 2), *encoder())
        with pytest.raises(ValueError, match="width 8"):
            wae_triton.tune("decode", image_of(1, 1, 1), image_of(1, 1, 1), *decoder(width=8), (2, 2))
        with pytest.raises(ValueError, match=r"and results in torch\.float64"):
            wae_triton.tune("encode", image_of(1, 2, 2), *encoder(), None, None, torch.float64)


# ------------------------------------------------------------------------------------------- compiled code

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TARGETS = [
    ("half", arch, tiles_for("half", arch)[i % len(tiles_for("half", arch))])
    for i, arch in enumerate(ARCHITECTURES)
] + [(precision, arch, tiles_for(precision, arch)[0]) for precision in ("tf32", "ieee") for arch in (90, 120)]
"""All architectures with different tiles of the short list; float32 on those that differ most from sm_80."""


def compiled_for(
    arch: int, tile: Tile, op: str, dtype: torch.dtype, parameter_dtype: torch.dtype
) -> Compiled:
    """The op's kernel for results of ``dtype``."""
    from ahead_of_time import compile_launch

    if op == "encode":
        image, own = image_of(1, 8, 8, parameter_dtype), EncoderParameters(*encoder(parameter_dtype))
        start = launch.launch_encode(image, own, dtype=dtype, tile=tile)
        return compile_launch(encode_kernel, start, arch)
    halves = [image_of(1, 4, 4, dtype) for _ in range(2)]
    start = launch.launch_decode(*halves, DecoderParameters(*decoder(parameter_dtype)), (8, 8), tile=tile)
    return compile_launch(decode_kernel, start, arch)


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("op", ["encode", "decode"])
@pytest.mark.parametrize(
    ("precision", "arch", "tile"), TARGETS, ids=lambda x: x if isinstance(x, str) else None
)
def test_compiled(precision: str, arch: int, tile: Tile, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "tf32_allowed", lambda: precision == "tf32")
    dtype = torch.float16 if precision == "half" else torch.float32
    kernel = compiled_for(arch, tile, op, dtype, dtype)
    kernel.assert_within(tile, arch, dtype.itemsize)
    # mma.sync on all architectures, because it fits these small products; plain float32 uses no tensor cores.
    assert bool(kernel.instructions["HMMA"]) == (precision != "ieee")
    assert not kernel.instructions.keys() & {"HGMMA", "UTCHMMA"}


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("op", ["encode", "decode"])
@pytest.mark.parametrize(
    "tile", tiles_for("half", 80)[::2], ids=lambda tile: f"{tile.half_rows}x{tile.pitch}"
)
def test_compiled_for_float32_parameters(tile: Tile, op: str) -> None:
    """With 16-bit results, the kernel has the same limits as for 16-bit parameters."""
    for arch in (80, 90) if tile in tiles_for("half", 90) else (80,):
        kernel = compiled_for(arch, tile, op, torch.float16, torch.float32)
        kernel.assert_within(tile, arch, torch.float16.itemsize)
        assert kernel.arguments["slab"].dtype == torch.float16
        assert kernel.instructions["HMMA"]


# ------------------------------------------------------------------------------------- ops and the registry


def arguments_of(op: str) -> list[Any]:
    if op == "encode":
        return [image_of(1, 5, 4), *encoder()]
    return [*(image_of(1, 3, 2) for _ in range(2)), *decoder(), [5, 4]]


@compiled
def test_ops_on_the_cpu_run_the_reference() -> None:
    image, parameters = image_of(1, 5, 4), encoder()
    for out, ref in zip(
        torch.ops.wae.encode_triton(image, *parameters), reference.encode(image, *parameters), strict=True
    ):
        assert torch.equal(out, ref)


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_schema_and_fake(op: str) -> None:
    triton_op, own = getattr(torch.ops.wae, f"{op}_triton").default, getattr(torch.ops.wae, op).default
    for part, attribute in (
        ("arguments", "name"),
        ("arguments", "type"),
        ("arguments", "default_value"),
        ("returns", "type"),
    ):
        assert [getattr(a, attribute) for a in getattr(triton_op._schema, part)] == [
            getattr(a, attribute) for a in getattr(own._schema, part) if a.name not in RESULT_OPTIONS
        ]
    torch.library.opcheck(triton_op, arguments_of(op), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_operations_are_counted(op: str) -> None:
    def counted(name: str) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            getattr(torch.ops.wae, name)(*arguments_of(op))
        return counter.get_total_flops()

    assert counted(f"{op}_triton") == counted(op) > 0


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_bad_input_is_refused(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages have the name of the called op. wae::encode is dispatched to Triton here as on a GPU."""
    bad = image_of(1, 5, 4)[:, :2]
    arguments = [bad, *encoder()] if op == "encode" else [bad, bad, *decoder(), [10, 8]]
    with pytest.raises(RuntimeError, match=rf"^wae::{op}_triton: (image|low) must have shape \(batch, 3, "):
        getattr(torch.ops.wae, f"{op}_triton")(*arguments)
    monkeypatch.setattr(backends, "backend_for", lambda *_: "triton")
    with backends.use("reference"), pytest.raises(RuntimeError, match=rf"^wae::{op}: (image|low) must have"):
        getattr(torch.ops.wae, f"_{op}_reference")(*arguments)


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_a_tensor_without_its_memory_is_refused(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel would read at address 0, after which no GPU works in that process."""
    monkeypatch.setattr(wae_triton.ops, "has_kernel", lambda *_: True)
    triton_op = getattr(torch.ops.wae, f"{op}_triton").default
    given = [*arguments_of(op), *(affine() if op == "encode" else ())]
    for at, (argument, value) in enumerate(zip(triton_op._schema.arguments, given, strict=True)):
        if isinstance(value, Tensor):
            freed = value.clone()
            freed.untyped_storage().resize_(0)
            must = f"{argument.name} must have {value.nbytes} bytes of memory, got 0"
            with pytest.raises(RuntimeError, match=f"^wae::{op}_triton: {must}"):
                triton_op(*given[:at], freed, *given[at + 1 :])


def test_gradients_are_refused() -> None:
    parameters = [p.requires_grad_() for p in encoder()]
    low, _ = torch.ops.wae.encode_triton(image_of(1, 2, 2), *parameters)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        low.sum().backward()


@compiled
@pytest.mark.parametrize(("op", "kernel"), [("encode", encode_kernel), ("decode", decode_kernel)])
def test_torch_compile_traces_the_kernel(op: str, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces the Triton launch in the op, and its cache depends on the kernel's source."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
    from torch._library.triton import get_triton_kernels_for_op

    assert get_triton_kernels_for_op(f"wae::{op}_triton") == [kernel]
    monkeypatch.setattr(wae_triton.ops, "has_kernel", lambda *_: True)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        shapes = [[int(s) for s in n.meta["val"].shape] for n in graph.graph.output_node().args[0]]
        return make_boxed_func(lambda *_: [torch.zeros(shape) for shape in shapes])

    backend = aot_autograd(fw_compiler=keep, inference_compiler=keep)
    torch.compile(getattr(torch.ops.wae, f"{op}_triton"), backend=backend, fullgraph=True)(*arguments_of(op))
    (node,) = (n for n in graphs[0].graph.nodes if "triton_kernel_wrapper" in str(n.target))
    assert kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn is kernel
    others = {str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function" and n is not node}
    allocations = {"aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default"}
    assert others <= allocations | {"<built-in function getitem>"}


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_untraced_launch_leaves_no_entry_in_the_table_of_torch(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that are not traced launch the kernel directly, because torch's table of launches only grows."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    launches: list[object] = []
    kernel = {"encode": encode_kernel, "decode": decode_kernel}[op]
    monkeypatch.setattr(type(kernel), "run", lambda *args, **options: launches.append(args))
    monkeypatch.setattr(wae_triton.ops, "has_kernel", lambda *_: True)
    monkeypatch.setattr(backends, "backend_for", lambda *_: "triton")
    arguments = arguments_of(op)
    before = len(kernel_side_table.id_to_kernel), len(kernel_side_table.constant_args)
    with backends.use("reference"):  # the reference passes it on to Triton, as on a GPU
        for _ in range(1000):
            getattr(torch.ops.wae, op)(*arguments)
    getattr(torch.ops.wae, f"{op}_triton")(*arguments)
    assert len(launches) == 1001
    assert (len(kernel_side_table.id_to_kernel), len(kernel_side_table.constant_args)) == before


def test_without_triton(tmp_path: Path) -> None:
    """Without the package, the backend gives it as the reason, and everything else works."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "from wae_kernels import backends\n"
        "print([b.reason for b in backends.available() if b.name == 'triton'], backends.backend_for('cuda'))"
    )
    done = run_program(code)
    assert done.stdout.startswith("['the package triton is not installed']")
    assert not done.stdout.rstrip().endswith("triton")


def test_choice_of_the_backend_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [b.name for b in backends.available()]
    assert names.index("cuda") < names.index("triton") < names.index("reference")
    monkeypatch.setattr(backends, "_triton", lambda *_: backends.Backend("triton", True, ""))
    monkeypatch.setattr(backends, "_cuda", lambda *_: backends.Backend("cuda", False, "not built"))
    assert backends.backend_for("cuda") == "triton"
    assert backends.backend_for("cuda", torch.float64) == backends.backend_for("cuda", width=8) == "reference"
    monkeypatch.setattr(backends, "_cuda", lambda *_: backends.Backend("cuda", True, ""))
    assert backends.backend_for("cuda") == "cuda"
    monkeypatch.setattr(backends, "_default", "triton")
    assert backends.backend_for("cuda") == "triton"
    assert backends.backend_for("cpu") in ("reference", *(f"cpu:{c}" for c in backends.CPU_CAPABILITIES))
    assert backends.kernels_run(on_processor=False)
    monkeypatch.setattr(backends, "_default", "reference")
    assert backends.backend_for("cuda") == "reference"
    assert not backends.kernels_run(on_processor=False)


def test_choice_of_the_backend_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU is too old, and the current one is not."""
    old = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d=None: (7, 0) if d == old else (9, 0))
    with backends.use("triton"):
        assert backends.backend_for("cuda") == backends.backend_for("cuda:0") == "triton"
        assert backends.backend_for(old) == "reference"
    monkeypatch.setattr(_load, "CUDA", _load.Loaded(SimpleNamespace(), ""))
    with backends.use("auto"):
        assert backends.backend_for("cuda:0") == "cuda"
        assert backends.backend_for(old) == "reference"


# --------------------------------------------------------------------------------------------- stored tiles


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("WAE_TRITON_TILES", str(tmp_path / "tiles.json"))
    yield tmp_path / "tiles.json"
    stored._tiles.cache_clear()


def test_stored_choices(file: Path) -> None:
    gpu, shape = GPUS[0], (3, 3, 200, 250)
    assert stored.choice("encode", gpu, "half", shape) is None
    tile, other = stored.candidates("half")[-1], stored.candidates("half")[0]
    stored.store(stored.key("encode", gpu, "half", shape), tile)
    stored.store(stored.key("decode", gpu, "half", shape), other)
    assert stored.choice("encode", gpu, "half", shape) == tile
    assert stored.choice("encode", gpu, "half", (4, 3, 256, 129)) == tile
    assert stored.choice("decode", gpu, "half", shape) == other
    for unlike in ((5, 3, 200, 250), (3, 3, 300, 250)):
        assert stored.choice("encode", gpu, "half", unlike) is None
    assert stored.choice("encode", gpu, "tf32", shape) is None
    assert stored.choice("encode", GPUS[1], "half", shape) is None
    assert [p.name for p in file.parent.iterdir()] == ["tiles.json"]
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))  # as another program may
    stored._tiles.cache_clear()
    assert stored.choice("encode", gpu, "half", shape) == tile


def test_choices_stored_concurrently_are_all_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If several processes tune, each adds to what the others wrote while it waited."""
    read = stored._read

    def slowly(file: Path) -> dict[str, dict[str, int]]:
        entries = read(file)
        time.sleep(0.05)
        return entries

    monkeypatch.setattr(stored, "_read", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(stored.store, "abcd", [Tile(64, 8, 4)] * 4))
    assert sorted(read(file)) == ["a", "b", "c", "d"]
    assert [p.name for p in file.parent.iterdir()] == ["tiles.json"]


def test_permissions_of_the_file_follow_the_umask(file: Path) -> None:
    before = os.umask(0o027)
    try:
        stored.store("name", Tile(64, 8, 4))
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing yet"])
def test_file_may_be_a_symbolic_link(file: Path, tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "elsewhere" / "tiles.json"
    if exists:
        target.parent.mkdir()
        target.write_text('{"old": {}}')
    file.symlink_to(Path("elsewhere", "tiles.json"))
    stored.store("name", Tile(64, 8, 4))
    assert file.is_symlink()
    assert list(stored._read(target)) == ["old", "name"][not exists :]
    assert [p.name for p in target.parent.iterdir()] == ["tiles.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "tiles.json"]


def test_temporary_file_of_a_killed_process_is_removed(file: Path) -> None:
    file.with_name("tiles.json.tmp").write_text('{"half of a')
    stored.store("name", Tile(64, 8, 4))
    assert list(stored._read(file)) == ["name"]
    assert [p.name for p in file.parent.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize("pitch", [48, [64, 32]], ids=str)
def test_choices_of_another_version_are_kept_but_not_used(file: Path, pitch: int | list[int]) -> None:
    gpu, shape = GPUS[0], (1, 3, 8, 8)
    name = stored.key("encode", gpu, "half", shape)
    file.write_text(json.dumps({name: {"pitch": pitch, "half_rows": 7, "group": 3}}))
    assert stored.choice("encode", gpu, "half", shape) is None
    stored.store("something else", Tile(64, 8, 4))
    assert json.loads(file.read_text())[name]["pitch"] == pitch


@pytest.mark.parametrize("text", ["{", "[1]", '{"encode": 3}', "\x00"])
def test_file_with_other_content_is_not_overwritten(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.warns(RuntimeWarning, match=r"without the stored ones: .*tiles\.json does not hold tiles"):
        assert stored.choice("encode", GPUS[0], "half", (1, 3, 8, 8)) is None
    with pytest.raises(ValueError, match=r"does not hold tiles: .*; WAE_TRITON_TILES names another$"):
        stored.store("name", Tile(64, 8, 4))
    assert file.read_text() == text
    assert [p.name for p in file.parent.iterdir()] == ["tiles.json"]


def test_folder_in_place_of_the_file_is_left_alone(file: Path) -> None:
    file.mkdir()
    wrong = r"tiles\.json does not hold tiles: Is a directory; WAE_TRITON_TILES names another$"
    with pytest.warns(RuntimeWarning, match=wrong):
        assert stored.choice("encode", GPUS[0], "half", (1, 3, 8, 8)) is None
    with pytest.raises(ValueError, match=wrong):
        stored.store("name", Tile(64, 8, 4))
    assert [p.name for p in file.parent.iterdir()] == ["tiles.json"]
