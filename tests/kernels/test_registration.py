"""The ops' registration with torch: opcheck, compile, export, autocast, meta tensors, changed weights."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    LAYOUTS,
    MAIN_CELLS,
    OPCHECK_LAYOUTS,
    OPS,
    Cell,
    affine,
    arguments_of,
    as_params,
    as_tuple,
    encoder,
    image_of,
    is_laid_out_like,
    recorded,
    widened,
)
from compare import assert_close, tolerance
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import wae_kernels
from wae_kernels import autograd, backends, fallback, flops, reference  # noqa: F401  (importing flops registers the formulas)
from wae_kernels import nn as wae_nn
from wae_kernels.parameters import KERNEL_CHANNELS, KERNEL_WIDTH

pytestmark = pytest.mark.usefixtures("poisoned_memory")

on_main_cells = pytest.mark.parametrize("cell", as_params(MAIN_CELLS), indirect=True)


class AutoEncoder(nn.Module):
    """A user's model: encode, some operations, decode to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = wae_nn.Encoder(), wae_nn.Decoder()

    def forward(self, image: Tensor) -> Tensor:
        low, high = self.encoder(image)
        return self.decoder(torch.tanh(low), high * 2, image.shape[2:])


# --------------------------------------------------------------------------------------------- opcheck


@on_main_cells
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", OPCHECK_LAYOUTS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by opcheck itself
def test_opcheck(cell: Cell, layout: str, op: str) -> None:
    arguments = arguments_of(op, layout, cell.device, requires_grad=True)
    torch.library.opcheck(getattr(torch.ops.wae, op).default, arguments)


@on_main_cells
@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_uint8_images_and_missing_arguments(cell: Cell, op: str) -> None:
    arguments = arguments_of(op, device=cell.device)
    if op.startswith("encode"):
        at = 0 if op == "encode" else 2
        arguments[at] = image_of(2, 13, 18, torch.uint8, cell.device)
        arguments[at + 11 : at + 13] = [None, None]
    if op.endswith("backward"):
        arguments[-1] = False
    torch.library.opcheck(getattr(torch.ops.wae, op).default, arguments)


DECODERS = [op for op in OPS if op.startswith("decode")]


@on_main_cells
@pytest.mark.parametrize("op", DECODERS)
@pytest.mark.parametrize("layout", OPCHECK_LAYOUTS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_of_float32_parameters_with_16_bit_images(cell: Cell, layout: str, op: str) -> None:
    dtypes = {"dtype": torch.bfloat16, "parameter_dtype": torch.float32}
    arguments = arguments_of(op, layout, cell.device, requires_grad=True, **dtypes)
    torch.library.opcheck(getattr(torch.ops.wae, op).default, arguments)


@on_main_cells
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_16_bit_images_with_float32_parameters_are_compiled_and_exported(cell: Cell, layout: str) -> None:
    model = wae_nn.Decoder().to(cell.device)
    low, high = (LAYOUTS[layout](image_of(2, 6, 9, torch.bfloat16, cell.device)) for _ in range(2))
    plain = model(low, high, (12, 17))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(low, high, (12, 17))
    exported = torch.export.export(model, (low, high, (12, 17))).module()(low, high, (12, 17))
    for out in (compiled, exported):
        assert (out.dtype, out.stride()) == (torch.bfloat16, plain.stride())
        assert torch.equal(out, plain)


RESULTS = [(torch.bfloat16, torch.channels_last), (torch.float64, torch.contiguous_format)]


@on_main_cells
@pytest.mark.parametrize(("dtype", "memory_format"), RESULTS, ids=str)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_of_requested_dtype_and_memory_format(
    cell: Cell, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    arguments = arguments_of("encode", device=cell.device, requires_grad=True)
    torch.library.opcheck(torch.ops.wae.encode.default, [*arguments, dtype, memory_format])


@on_main_cells
@pytest.mark.parametrize(("dtype", "memory_format"), RESULTS, ids=str)
def test_requested_dtype_and_memory_format_are_compiled_and_exported(
    cell: Cell, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    class RequestingEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = wae_nn.Encoder().to(cell.device)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return self.encoder(image, dtype=dtype, memory_format=memory_format)

    model, image = RequestingEncoder(), image_of(2, 12, 17, device=cell.device)
    plain = model(image)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(image)
    exported = torch.export.export(model, (image,)).module()(image)
    for outputs in (compiled, exported):
        for out, ref in zip(outputs, plain, strict=True):
            assert (out.dtype, out.stride()) == (dtype, ref.stride())
            assert torch.equal(out, ref)


@on_main_cells
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1)], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "transposed"])
def test_fake_outputs_have_the_strides_of_real_ones(
    cell: Cell, layout: str, size: tuple[int, int], op: str
) -> None:
    """With sizes of 1, strides are ambiguous and opcheck does not compare them."""
    assert_fake_outputs_are_like_real_ones(op, arguments_of(op, layout, cell.device, size=size))


@on_main_cells
@pytest.mark.parametrize("op", DECODERS)
@pytest.mark.parametrize("layouts", [("nchw", "channels_last"), ("channels_last", "nchw")], ids=str)
def test_fake_outputs_for_low_and_high_in_different_layouts(
    cell: Cell, layouts: tuple[str, str], op: str
) -> None:
    arguments, at = arguments_of(op, device=cell.device), int(op.endswith("backward"))
    arguments[at : at + 2] = [LAYOUTS[name](arguments[at + i]) for i, name in enumerate(layouts)]
    assert_fake_outputs_are_like_real_ones(op, arguments)


def assert_fake_outputs_are_like_real_ones(op: str, arguments: Sequence[Any]) -> None:
    real = getattr(torch.ops.wae, op)(*arguments)
    with FakeTensorMode() as mode:
        fake = getattr(torch.ops.wae, op)(
            *(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments)
        )
    for a, b in zip(as_tuple(real), as_tuple(fake), strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        assert a.stride() == b.stride()


@on_main_cells
@pytest.mark.parametrize("size", [(1, 1), (4, 5)], ids=str)
def test_one_of_several_channels_last_images(cell: Cell, size: tuple[int, int]) -> None:
    """``images[0].unsqueeze(0)`` has an unusual stride of the batch dimension."""
    image = LAYOUTS["channels_last"](image_of(2, *size, device=cell.device))[0].unsqueeze(0)
    parameters = encoder(device=cell.device)
    real = torch.ops.wae.encode(image, *parameters)
    with FakeTensorMode() as mode:
        fake = torch.ops.wae.encode(*map(mode.from_tensor, (image, *parameters)))
    for a, b, expected in zip(real, fake, torch.ops.wae.encode(image.contiguous(), *parameters), strict=True):
        assert a.stride() == b.stride()
        assert_close(a, expected.double(), tolerance(torch.float32))


def test_poisoned_memory_includes_the_outputs_of_the_kernels(cell: Cell) -> None:
    """The fixture of all op tests also fills what the compiled library allocates."""
    if not cell.compiled or cell.device != "cpu":
        pytest.skip("here PyTorch's operators allocate the outputs, and fill them")
    for op in OPS:
        arguments = arguments_of(op)
        with recorded() as profile:
            getattr(torch.ops.wae, op)(*arguments)
        events = profile.events()
        allocated = [e for e in events if e.name in ("aten::empty", "aten::empty_strided")]
        filled = [e for e in events if e.name == "aten::fill_"]
        assert {e.cpu_parent for e in filled} >= set(allocated)
        outputs = len(getattr(torch.ops.wae, op).default._schema.returns)
        assert len(filled) >= outputs


# --------------------------------------------------------------------------------------------- compile


def both_ways(function: Callable[[Tensor], Tensor], model: nn.Module, image: Tensor) -> list[Tensor]:
    """The result, and the gradients of the image and of every parameter."""
    leaf = image.detach().requires_grad_()
    out = function(leaf)
    return [out, *torch.autograd.grad(out.square().mean(), [leaf, *model.parameters()])]


@on_main_cells
@pytest.mark.parametrize(("layout", "dynamic"), [("nchw", True), ("channels_last", True), ("nchw", False)])
@pytest.mark.slow
def test_compiled_equals_eager(cell: Cell, layout: str, dynamic: bool) -> None:
    model = AutoEncoder().to(cell.device)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, *size in [(2, 12, 17), (3, 15, 16)]:
        image = LAYOUTS[layout](image_of(batch, *size, device=cell.device))
        for a, b in zip(both_ways(model, model, image), both_ways(compiled, model, image), strict=True):
            assert_close(b, a.double(), tolerance(torch.float32))
        assert is_laid_out_like(compiled(image), image)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile for the CPU needs a C++ compiler")
def test_compiled_by_inductor_equals_eager() -> None:
    model = AutoEncoder()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch, *size in [(2, 12, 17), (3, 15, 16)]:
        image = image_of(batch, *size)
        limit = tolerance(torch.float32, backends.backend_for("cpu"))
        for a, b in zip(both_ways(model, model, image), both_ways(compiled, model, image), strict=True):
            assert_close(b, a.double(), limit)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile for the CPU needs a C++ compiler")
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_inductor_knows_the_strides_around_an_op(layout: str) -> None:
    """It pads the result of a matrix product for the op, and fuses views of the op's results."""
    model, mix = AutoEncoder(), nn.Linear(19, 19)

    def function(image: Tensor) -> tuple[Tensor, ...]:
        low, high = model.encoder(mix(image).contiguous())
        back = model.decoder(low, high, image.shape[2:])
        joined = torch.cat((low, high[:, :1].roll(1, 0)), 1)
        return (
            torch.pixel_shuffle(joined, 2),
            low.unsqueeze(2).expand(-1, -1, 2, -1, -1) + 1,
            back.permute(0, 2, 3, 1).reshape(len(image), -1, 3),
        )

    image = LAYOUTS[layout](image_of(2, 12, 19))
    with torch.no_grad():
        limit = tolerance(torch.float32, backends.backend_for("cpu"))
        for a, b in zip(torch.compile(function, fullgraph=True)(image), function(image), strict=True):
            assert a.stride() == b.stride()
            assert_close(a, b.double(), limit)


def test_gradient_that_was_not_required_at_compilation() -> None:
    model, image = wae_nn.Encoder(), image_of(2, 6, 9)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert not compiled(image)[0].requires_grad
    recompiles = _recompiles_for_a_parameter(nn.Conv2d(3, 4, 3), image)
    for leaf in (image.clone(), *((model.conv2.weight, model.low.bias) if recompiles else ())):
        leaf.requires_grad_()
        out = compiled(leaf if leaf.shape == image.shape else image)
        expected = model(leaf if leaf.shape == image.shape else image)
        (got,) = torch.autograd.grad(out[0].square().sum(), leaf)
        (want,) = torch.autograd.grad(expected[0].square().sum(), leaf)
        assert_close(got, want.double(), tolerance(torch.float32))


def _recompiles_for_a_parameter(layer: nn.Conv2d, image: Tensor) -> bool:
    """Whether torch recompiles its own layer when the weight starts to require a gradient; 2.10 does not."""
    layer.requires_grad_(False)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(image)
    layer.weight.requires_grad_()
    requires_grad: bool = compiled(image).requires_grad
    return requires_grad


def test_compiler_does_not_trace_ops_called_by_an_uncompiled_function() -> None:
    """It would warn about what it cannot trace there."""
    image, parameters = image_of(1, 6, 9), encoder()

    def function(image: Tensor) -> list[Tensor]:
        results = []
        for _ in range(2):
            torch._dynamo.graph_break()  # in a loop, so that all of this function stays uncompiled
            results += torch.ops.wae.encode(image, *parameters)
        return results

    low, high, *again = torch.compile(lambda image: function(image), backend="eager")(image)
    assert all(map(torch.equal, again, (low, high)))


@pytest.mark.slow
def test_new_sizes_do_not_compile_again() -> None:
    model = AutoEncoder()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for batch, *size in [(2, 12, 17), (3, 15, 16), (5, 16, 14), (4, 13, 15), (2, 40, 7), (7, 7, 40)]:
        image = image_of(batch, *size)
        assert compiled(image).shape == image.shape
        compiled(image.requires_grad_()).sum().backward()
    assert counter.frame_count <= 2  # one without a gradient, one with


@on_main_cells
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sizes_that_depend_on_data_are_compiled(cell: Cell, layout: str) -> None:
    """Fake kernels cannot check such sizes; the real ones do."""
    model = AutoEncoder().to(cell.device)

    def of_a_crop(image: Tensor, height: Tensor, output_height: Tensor) -> Tensor:
        rows, output_rows = height.item(), output_height.item()
        torch._check(rows >= 1)
        torch._check(rows <= image.shape[2])
        low, high = model.encoder(image[:, :, :rows])
        return model.decoder(low, high, (output_rows, image.shape[3]))

    image = LAYOUTS[layout](image_of(2, 12, 17, device=cell.device))
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(of_a_crop, fullgraph=True, backend="aot_eager")
        for rows in (9, 4, 1):
            height = torch.tensor(rows)
            result, expected = compiled(image, height, height), of_a_crop(image, height, height)
            assert (result.shape, result.stride()) == (expected.shape, expected.stride())
            assert_close(result, expected.double(), tolerance(torch.float32))
        with pytest.raises(RuntimeError, match="output_size must be"):
            compiled(image, torch.tensor(9), torch.tensor(4))


@on_main_cells
def test_sizes_marked_unbacked_are_compiled_once(cell: Cell) -> None:
    model, counter = AutoEncoder().to(cell.device), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch, *size in [(2, 12, 17), (1, 1, 9), (3, 2, 1), (0, 4, 4)]:
        image = image_of(batch, *size, device=cell.device)
        for dim in (0, 2, 3):
            torch._dynamo.decorators.mark_unbacked(image, dim)
        assert_close(compiled(image), model(image).double(), tolerance(torch.float32))
    assert counter.frame_count == 1


def test_compilation_names_an_invalid_argument() -> None:
    encode = torch.compile(torch.ops.wae.encode, fullgraph=True, backend="eager")
    with pytest.raises(
        RuntimeError, match=r"image must have shape \(batch, 3, height >= 1, width >= 1\), got \(1, 4, 8, 8\)"
    ):
        encode(torch.zeros(1, 4, 8, 8), *encoder())


# ---------------------------------------------------------------------------------------------- export


@on_main_cells
def test_export_with_dynamic_batch_and_size(cell: Cell) -> None:
    model = AutoEncoder().to(cell.device).eval()
    dim = torch.export.Dim  # at least 3, because torch treats sizes of 1, here of low and high, as constants
    shapes = {"image": {0: dim("batch", max=64), 2: dim("height", min=3), 3: dim("width", min=3)}}
    program = torch.export.export(model, (image_of(2, 12, 17, device=cell.device),), dynamic_shapes=shapes)
    called = {str(node.target) for node in program.graph.nodes}
    assert {"wae.encode.default", "wae.decode.default"} <= called
    for batch, *size in [(1, 3, 4), (3, 15, 16), (4, 16, 16), (2, 13, 15)]:
        image = image_of(batch, *size, device=cell.device)
        assert_close(program.module()(image), model(image).double(), tolerance(torch.float32))


def test_export_to_a_file_and_back(tmp_path: Any) -> None:
    model, image = AutoEncoder().eval(), image_of(2, 12, 17)
    torch.export.save(torch.export.export(model, (image,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(loaded(image), model(image))


# -------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
def test_autocast_runs_in_its_dtype(cell: Cell, op: str, dtype: torch.dtype) -> None:
    arguments = arguments_of(op, device=cell.device)
    with torch.autocast(cell.device, dtype):
        outputs = getattr(torch.ops.wae, op)(*arguments)
    cast = widened([a.to(dtype) if isinstance(a, Tensor) else a for a in arguments])
    if op == "encode":
        cast[11:] = widened(arguments[11:])  # scale and shift keep their precision
    expected = getattr(reference, op)(*cast)
    for out, ref in zip(as_tuple(outputs), as_tuple(expected), strict=True):
        assert out.dtype == dtype
        assert_close(out, ref, tolerance(dtype))


def test_autocast_gradients_have_the_dtype_of_their_tensors(cell: Cell) -> None:
    arguments = arguments_of("encode", device=cell.device, requires_grad=True)
    with torch.autocast(cell.device, torch.bfloat16):
        low, high = torch.ops.wae.encode(*arguments)
    (low.float().sum() + high.float().sum()).backward()
    assert all(a.grad.dtype == torch.float32 and a.grad.isfinite().all() for a in arguments)


@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
def test_backward_inside_autocast_gives_the_same_gradients(cell: Cell, op: str) -> None:
    """A backward pass inside autocast gives the same gradients, as with torch's own convolutions."""
    found = []
    for inside in (False, True):
        torch.manual_seed(0)
        arguments = arguments_of(op, device=cell.device, requires_grad=True)
        outputs = as_tuple(getattr(torch.ops.wae, op)(*arguments))
        with torch.autocast(cell.device, torch.bfloat16, enabled=inside):
            torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        found.append([a.grad for a in arguments if isinstance(a, Tensor)])
    assert all(map(torch.equal, *found))


def test_autocast_does_not_cast_float64(cell: Cell) -> None:
    bytes_ = image_of(2, 13, 18, torch.uint8, cell.device)
    for op, *image in (("encode",), ("encode", bytes_), ("decode",), ("decode_scores",)):
        arguments = arguments_of(op, device=cell.device, dtype=torch.float64)
        arguments[: len(image)] = image
        with torch.autocast(cell.device, torch.bfloat16):
            inside = getattr(torch.ops.wae, op)(*arguments)
        outside = getattr(torch.ops.wae, op)(*arguments)
        assert torch.equal(torch.cat([*inside]), torch.cat([*outside]))
        assert inside[0].dtype == torch.float64


def test_autocast_does_not_cast_uint8_images(cell: Cell) -> None:
    image, scale_shift = (
        image_of(2, 9, 12, torch.uint8, cell.device),
        affine(device=cell.device, of_bytes=True),
    )
    parameters = encoder(device=cell.device)
    with torch.autocast(cell.device, torch.bfloat16):
        outputs = torch.ops.wae.encode(image, *parameters, *scale_shift)
    wide = widened([*(p.bfloat16() for p in parameters), *scale_shift])
    for out, ref in zip(outputs, reference.encode(image, *wide), strict=True):
        assert out.dtype == torch.bfloat16
        assert_close(out, ref, tolerance(torch.bfloat16))


class Casts(TorchDispatchMode):
    """Records the shapes of the tensors that are cast in its block."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "gradients"])
def test_autocast_casts_nothing_for_a_compiled_kernel(cell: Cell, grad: bool) -> None:
    """Parameters are not cast, so no cast copy can be stale; nor are tensors between encoder and decoder."""
    if not backends.kernels_run(on_processor=cell.device == "cpu"):
        pytest.skip("other backends compute in autocast's dtype")
    model, image = AutoEncoder().to(cell.device), image_of(2, 12, 17, device=cell.device)
    with torch.set_grad_enabled(grad), torch.autocast(cell.device, torch.bfloat16), Casts() as casts:
        for _ in range(2):
            low, high = model.encoder(image)
            back = model.decoder(low, high, (12, 17))
    assert casts.shapes == []
    assert {low.dtype, high.dtype, back.dtype} == {torch.bfloat16}
    if grad:
        back.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in model.parameters())


def test_autocast_casts_only_images_for_a_compiled_decoder(cell: Cell) -> None:
    if not backends.kernels_run(on_processor=cell.device == "cpu"):
        pytest.skip("other backends compute in autocast's dtype")
    for op in ("decode", "decode_scores") if cell.device == "cpu" else ("decode",):
        low, high, *others = arguments_of(op, device=cell.device)
        half, parts = high.half(), [tuple(low.shape), tuple(high.shape)]
        with torch.autocast(cell.device, torch.bfloat16):
            with Casts() as casts:
                mixed = getattr(torch.ops.wae, op)(low, half, *others)
            assert casts.shapes == parts
            with Casts() as casts:
                out = getattr(torch.ops.wae, op)(low, high, *others)
            assert casts.shapes == ([tuple(out.shape)] if cell.device == "cpu" else parts)
        assert mixed.dtype == out.dtype == torch.bfloat16


def on_a_gpu(arguments: Sequence[Any], device: str = "cuda") -> list[Any]:
    """Fake tensors on this device; inside ``FakeTensorMode``."""
    return [
        torch.empty(a.shape, dtype=a.dtype, device=device) if isinstance(a, Tensor) else a for a in arguments
    ]


@contextlib.contextmanager
def autocast_on_a_gpu(dtype: torch.dtype, device: str = "cuda") -> Iterator[None]:
    """``torch.autocast`` without its check that there is a GPU."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
@pytest.mark.parametrize("has_kernels", [True, False], ids=["kernels", "no_kernels"])
def test_autocast_on_a_gpu_casts_no_parameter(
    op: str, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests autocast's rule for the op, which needs no GPU."""
    monkeypatch.setattr(backends, "kernels_run", lambda *, on_processor: has_kernels and not on_processor)
    image, *others = (tuple(a.shape) for a in arguments_of(op) if isinstance(a, Tensor))
    with FakeTensorMode():
        arguments = on_a_gpu(arguments_of(op))
        with autocast_on_a_gpu(torch.float16), Casts() as casts:
            outputs = as_tuple(getattr(torch.ops.wae, op)(*arguments))
    images, parameters = ([image], others[:-2]) if op == "encode" else ([image, others[0]], others[1:])
    if not has_kernels or op == "decode_scores":  # which has no kernel for GPUs
        assert casts.shapes == [*images, *parameters]
    else:
        assert casts.shapes == ([] if op == "encode" else images)
    assert {(out.dtype, out.device.type) for out in outputs} == {(torch.float16, "cuda")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype_of_high", [torch.float32, torch.float16], ids=str)
def test_autocast_of_scores_on_a_gpu(dtype: torch.dtype, dtype_of_high: torch.dtype) -> None:
    """The reference runs instead of the op, in autocast's dtype, for any dtypes of low and high."""
    with FakeTensorMode():
        low, high, *others = on_a_gpu(arguments_of("decode_scores"))
        with autocast_on_a_gpu(torch.float16):
            scores = wae_kernels.decode_scores(low.to(dtype), high.to(dtype_of_high), *others)
    assert scores.dtype == torch.float16


@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_autocast_on_other_gpus(op: str, device: str) -> None:
    """There the reference's layers compute in autocast's dtype, so the fake kernel must give this dtype."""
    with FakeTensorMode():
        first, *others = on_a_gpu(arguments_of(op), device)
        with autocast_on_a_gpu(torch.float16, device):
            for dtype in (torch.float32, torch.float16):
                outputs = as_tuple(getattr(torch.ops.wae, op)(first.to(dtype), *others))
                assert {(out.dtype, out.device.type) for out in outputs} == {(torch.float16, device)}


def test_gradients_of_decode_on_a_gpu_cast_each_parameter_once() -> None:
    """A backward kernel needs the images' dtype. Called directly, because autograd's engine needs a GPU."""
    with FakeTensorMode():
        low, high, *parameters, size = on_a_gpu(arguments_of("decode"))
        low, high, grad = low.half(), high.half(), torch.empty(2, 3, *size, device="cuda").half()
        needs = [True] * (2 + len(parameters))
        with Casts() as casts:
            *gradients, none = autograd._BACKWARD["decode"](
                [low, high, *parameters, size], [*needs, False], grad
            )
    assert none is None
    assert [g.dtype for g in gradients] == [t.dtype for t in (low, high, *parameters)]
    assert casts.shapes == 2 * [tuple(p.shape) for p in parameters]  # and each gradient is cast back


def test_gradients_of_encode_on_a_gpu_are_computed_in_the_dtype_of_16_bit_results() -> None:
    """Image and parameters are cast for the backward kernel; scale and shift are not."""
    with FakeTensorMode():
        tensors = on_a_gpu(arguments_of("encode"))
        grads = [torch.empty(2, 3, 7, 9, device="cuda").half() for _ in range(2)]
        with Casts() as casts:
            gradients = autograd._BACKWARD["encode"](tensors, [True] * len(tensors), *grads)
    assert [g.dtype for g in gradients[: len(tensors)]] == [t.dtype for t in tensors]
    assert casts.shapes == 2 * [tuple(t.shape) for t in tensors[:-2]]  # and each gradient is cast back


def test_autocast_keeps_a_requested_dtype(cell: Cell) -> None:
    arguments = arguments_of("encode", device=cell.device)
    plain = wae_kernels.encode(*arguments, dtype=torch.float32)
    with torch.autocast(cell.device, torch.bfloat16):
        inside = wae_kernels.encode(*arguments, dtype=torch.float32)
    for out, ref in zip(inside, plain, strict=True):
        assert out.dtype == torch.float32
        assert_close(out, ref.double(), tolerance(torch.bfloat16))


def test_autocast_casts_if_no_kernel_supports_the_channels_or_the_width(cell: Cell) -> None:
    """PyTorch's convolutions run instead, in autocast's dtype."""
    most, wide = KERNEL_CHANNELS, KERNEL_WIDTH
    for classes, features, width in ((most + 1, 2, wide), (2, most + 1, wide), (2, 2, wide // 2)):
        decoder = wae_nn.ScoreDecoder(classes, features, width).to(cell.device)
        low, high = (image_of(1, 4, 4, device=cell.device, channels=n) for n in (classes, features))
        with torch.no_grad(), torch.autocast(cell.device, torch.bfloat16), Casts() as casts:
            scores = decoder(low, high, (8, 8))
        assert scores.dtype == torch.bfloat16
        assert tuple(decoder.conv1.weight.shape) in casts.shapes
    if cell.device == "cpu" and backends.kernels_run(on_processor=True):
        decoder, both = wae_nn.ScoreDecoder(most, most), [image_of(1, 4, 4, channels=most) for _ in range(2)]
        with torch.no_grad(), torch.autocast(cell.device, torch.bfloat16), Casts() as casts:
            scores = decoder(*both, (8, 8))
        assert casts.shapes == [tuple(scores.shape)]


def test_autocast_uses_changed_weights_and_ends_with_its_block(cell: Cell) -> None:
    model, image = wae_nn.Encoder().to(cell.device), image_of(2, 12, 17, device=cell.device)
    with torch.autocast(cell.device, torch.bfloat16):
        for change in (
            lambda weight: weight.mul_(2),
            lambda weight: weight.data.mul_(2),  # does not change the tensor's version
            lambda weight: weight.set_(weight * 2),
        ):
            before = model(image)[0]
            with torch.no_grad():
                change(model.low.weight)
                model.low.bias.mul_(2)
            assert torch.equal(model(image)[0], 2 * before)
    assert model(image)[0].dtype == torch.float32


def test_disabled_autocast_changes_nothing(cell: Cell) -> None:
    arguments = arguments_of("encode", device=cell.device)
    with torch.autocast(cell.device, torch.bfloat16, enabled=False):
        inside = torch.ops.wae.encode(*arguments)
    assert all(map(torch.equal, inside, torch.ops.wae.encode(*arguments)))


# ----------------------------------------------------------------------------------- other ways to call


@on_main_cells
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "expanded_channels"])
def test_meta_tensors_give_shapes(cell: Cell, layout: str, op: str) -> None:
    arguments = arguments_of(op, layout, cell.device)
    real = getattr(torch.ops.wae, op)(*arguments)
    meta = getattr(torch.ops.wae, op)(*(a.to("meta") if isinstance(a, Tensor) else a for a in arguments))
    for a, b in zip(as_tuple(real), as_tuple(meta), strict=True):
        assert b.is_meta
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_have_the_strides_that_distributed_training_expects(
    cell: Cell, memory_format: torch.memory_format, tmp_path: Path
) -> None:
    """It warns if a gradient's strides are not those of its parameter, and warnings are errors."""
    if cell.device != "cpu":
        pytest.skip("the test uses gloo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = AutoEncoder().to(memory_format=memory_format)
        image = image_of(2, 6, 9).contiguous(memory_format=memory_format)
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            parallel(image).square().mean().backward()
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_inference_mode_and_no_grad(cell: Cell) -> None:
    model = AutoEncoder().to(cell.device)
    image = image_of(2, 9, 12, device=cell.device)
    expected = model(image)
    with torch.inference_mode():
        assert torch.equal(model(image), expected)
    with torch.no_grad():
        assert torch.equal(model(image), expected)
    assert expected.requires_grad


@on_main_cells
@pytest.mark.parametrize("op", OPS)
def test_views_that_torch_negates_when_they_are_read(cell: Cell, op: str) -> None:
    """The memory of the imaginary part of a conjugate holds the opposite number."""

    def lazy(tensor: Tensor) -> Tensor:
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag

    arguments = arguments_of(op, device=cell.device)
    views = [lazy(a) if isinstance(a, Tensor) else a for a in arguments]
    assert views[0].is_neg()
    expected = as_tuple(getattr(torch.ops.wae, op)(*arguments))
    assert all(map(torch.equal, as_tuple(getattr(torch.ops.wae, op)(*views)), expected))
    if hasattr(wae_kernels, op):  # it calls the op in another way
        assert all(map(torch.equal, as_tuple(getattr(wae_kernels, op)(*views)), expected))


@on_main_cells
def test_functional_call(cell: Cell) -> None:
    model, other = AutoEncoder().to(cell.device), AutoEncoder().to(cell.device)
    image = image_of(2, 9, 12, device=cell.device)
    replaced = torch.func.functional_call(model, dict(other.named_parameters()), (image,))
    assert torch.equal(replaced, other(image))
    assert not torch.equal(replaced, model(image))


@on_main_cells
def test_activation_checkpointing(cell: Cell) -> None:
    model = AutoEncoder().to(cell.device)

    def checkpointed(image: Tensor) -> Tensor:
        out: Tensor = torch.utils.checkpoint.checkpoint(model, image, use_reentrant=False)
        return out

    image = image_of(2, 9, 12, device=cell.device)
    for a, b in zip(both_ways(model, model, image), both_ways(checkpointed, model, image), strict=True):
        assert torch.equal(a, b)


# -------------------------------------------------------------------------------------- changed weights
#
# The compiled kernels cache packed copies of weights. A stale copy would give wrong results.


def expected_now(model: wae_nn.Encoder, image: Tensor) -> Sequence[Tensor]:
    layers = (model.conv1, model.conv2, model.conv3, model.low, model.high)
    tensors = [t.detach() for layer in layers for t in (layer.weight, layer.bias)]
    return reference.encode(*widened([image, *tensors]))


def change_in_place(model: wae_nn.Encoder) -> None:
    with torch.no_grad():
        model.conv2.weight.mul_(1.5)


def change_one_number(model: wae_nn.Encoder) -> None:
    with torch.no_grad():
        model.conv3.weight[15, 15, 2, 2] += 1


def change_by_data(model: wae_nn.Encoder) -> None:
    model.conv1.bias.data += 1  # does not change the tensor's version


def change_by_numpy(model: wae_nn.Encoder) -> None:
    model.low.weight.detach().numpy()[:] *= 2  # torch does not notice


def swap_data(model: wae_nn.Encoder) -> None:
    model.high.weight.data = torch.randn_like(model.high.weight)


def step_an_optimizer(model: wae_nn.Encoder) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    low, high = model(image_of(1, 8, 8))
    (low.square().mean() + high.square().mean()).backward()
    optimizer.step()


def load_another_state(model: wae_nn.Encoder) -> None:
    model.load_state_dict(wae_nn.Encoder().state_dict())


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_one_number,
        change_by_data,
        change_by_numpy,
        swap_data,
        step_an_optimizer,
        load_another_state,
    ],
)
def test_changed_weights_take_effect_at_once(cell: Cell, change: Callable[[wae_nn.Encoder], None]) -> None:
    if cell.device != "cpu":
        pytest.skip("only CPU kernels cache weights")
    model, image = wae_nn.Encoder(), image_of(1, 12, 17)
    limit = tolerance(torch.float32, backends.backend_for("cpu"))
    with torch.no_grad():
        before = model(image)
    change(model)
    with torch.no_grad():
        after = model(image)
    assert not all(map(torch.equal, before, after))
    for out, ref in zip(after, expected_now(model, image), strict=True):
        assert_close(out, ref, limit)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=str
)  # compared in place, and as a copy
@pytest.mark.parametrize(("op", "images"), [("encode", 1), ("decode", 2), ("decode_scores", 2)])
def test_every_parameter_takes_effect_at_once(cell: Cell, op: str, images: int, dtype: torch.dtype) -> None:
    arguments = arguments_of(op, device=cell.device, dtype=dtype)
    parameters = range(images, images + (8 if op == "decode_scores" else 10))

    def results(arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        return as_tuple(getattr(torch.ops.wae, op)(*arguments))

    for number in parameters:
        changed = arguments[number].clone()
        changed[-1] += 1
        before = results(arguments)
        after = results([*arguments[:number], changed, *arguments[number + 1 :]])
        assert not all(map(torch.equal, before, after)), number


def test_weights_in_reused_memory_take_effect_at_once(cell: Cell) -> None:
    """A new model at the addresses of a deleted one, with version counters that start from zero again."""
    limit = tolerance(torch.float32, backends.backend_for(cell.device), cell.device)
    image, addresses = image_of(1, 12, 17, device=cell.device), set()
    for _ in range(20):
        model = wae_nn.Encoder().to(cell.device)
        addresses.add(model.conv2.weight.data_ptr())
        with torch.no_grad():
            outputs = model(image)
        for out, ref in zip(outputs, expected_now(model, image), strict=True):
            assert_close(out, ref, limit)
        del model, outputs
    if cell.device == "cpu":
        assert len(addresses) < 20, "no memory was reused, so the test checked nothing"


def test_interleaved_models_keep_their_weights(cell: Cell) -> None:
    models = [wae_nn.Decoder().to(cell.device) for _ in range(3)]
    models.append(copy.deepcopy(models[0]))
    low, high = image_of(1, 6, 9, device=cell.device), image_of(1, 6, 9, device=cell.device)
    once = [model(low, high, (12, 17)) for model in models]
    assert torch.equal(once[0], once[3])
    assert not torch.equal(once[0], once[1])
    for _ in range(3):
        for model, out in zip(models, once, strict=True):
            assert torch.equal(model(low, high, (12, 17)), out)


def test_one_thread_for_each_model(cell: Cell) -> None:
    """Serving several models at once, which share the kernels' cache of packed weights."""
    models = [wae_nn.Encoder().to(cell.device).requires_grad_(False) for _ in range(8)]
    image = image_of(1, 12, 17, device=cell.device)
    alone = [torch.cat(model(image)) for model in models]

    def serve(model: wae_nn.Encoder) -> list[Tensor]:
        with backends.use(cell.name):  # the choice is local to a thread
            return [torch.cat(model(image)) for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        for out, served in zip(alone, pool.map(serve, models), strict=True):
            assert all(torch.equal(out, one) for one in served)


def test_flops_are_counted() -> None:
    """The ops count as the layers do, forward and backward."""
    encoder, decoder = wae_nn.Encoder(), wae_nn.Decoder()
    image = torch.randn(2, 3, 9, 8)

    def total(called: bool) -> tuple[int, int]:
        for layer in (*encoder.children(), *decoder.children()):
            layer._forward_hooks.clear()
            if called:  # with a hook, the layer is called, and torch counts it
                layer.register_forward_hook(lambda *_: None)
        x = image.clone().requires_grad_()
        with FlopCounterMode(display=False) as forward:
            low, high = encoder(x)
            back = decoder(low, high, (9, 8))
        with FlopCounterMode(display=False) as backward:
            back.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    assert total(called=False) == total(called=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        packed = torch.ops.wae.conv3x3_pack(torch.randn(20, 5, 3, 3))
        torch.ops.wae.conv3x3(torch.randn(2, 5, 6, 7), packed, None, 20)
    assert counter.get_total_flops() == 2 * 2 * 6 * 7 * 9 * 5 * 20


# ----------------------------------------------------------------------------------------------- the warning


def test_warning_reported_by_another_thread_is_no_error() -> None:
    class ReportedMeanwhile(list[str]):
        def __bool__(self) -> bool:
            self.clear()  # as another thread does between this check and the report
            return True

    assert fallback._warn_first(lambda: 1, ReportedMeanwhile(["the library is missing"]))() == 1
