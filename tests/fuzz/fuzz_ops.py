"""For any arguments of an op, the compiled kernel and the reference give the same results or the same error.

The bytes choose the op, its size, and changes of some arguments: of sizes, strides, dtypes, None, numbers.

python tests/fuzz/fuzz_ops.py CORPUS
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

OPS = (
    *("conv3x3", "conv3x3_pack", "decode", "decode_backward", "encode", "encode_backward", "encode_int8"),
    *("decode_scores", "decode_scores_backward"),
)
"""Append new ops, because the stored files refer to an op by its number."""

_SIZES = (0, 1, 2, 3, 4, 7, 16, 17, 33)
_NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 16, 17, 2**31, 2**62, 2**63 - 1)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool)
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
_KINKS = 0.3  # near the kink of ReLU, a sum may be above it for one implementation and below it for the other


class _Choices:
    """Takes numbers from bytes, and zeros when the bytes are used up."""

    def __init__(self, content: bytes) -> None:
        self._content = iter(content)

    def below(self, most: int) -> int:
        return next(self._content, 0) % most

    def of(self, options):
        return options[self.below(len(options))]


def check(content: bytes) -> None:
    """Call the kernel and the reference, and compare their outcomes."""
    from cases import as_tuple

    choices = _Choices(content)
    op = choices.of(OPS)
    values = _arguments(op, choices)
    for _ in range(choices.below(4)):
        number = choices.below(len(values))
        values[number] = _changed(values[number], choices)
    if choices.below(2) and op.startswith("decode"):  # float16 images and gradients with float32 parameters
        images = 3 if op.endswith("backward") else 2
        values[:images] = [x.half() if isinstance(x, Tensor) else x for x in values[:images]]
    got, wanted = (_outcome(getattr(torch.ops.wae, name), values) for name in (op, f"_{op}_reference"))
    if isinstance(wanted, str) or isinstance(got, str):
        wanted = str(wanted).replace(f"_{op}_reference", op)  # torch's own messages name it
        assert got == wanted, (op, got, wanted)
        return
    lowest = min((x.dtype for x in values if isinstance(x, Tensor)), key=_digits)
    tolerance = _KINKS if op.endswith("backward") else _TOLERANCES[lowest]
    if op == "encode_int8":
        tolerance = 0  # whole numbers
    for one, other in zip(as_tuple(got), as_tuple(wanted), strict=True):
        assert one.shape == other.shape, (op, one.shape, other.shape)
        assert one.dtype == other.dtype, (op, one.dtype, other.dtype)
        if one.numel():
            difference = (one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-3)
            assert difference <= tolerance, (op, float(difference))


def _arguments(op: str, choices: _Choices) -> list:
    """Valid arguments of the op."""
    from cases import ZERO_POINTS, arguments_of, image_of, int8_encoder

    size = (1 + choices.below(20), 1 + choices.below(40))
    if op == "encode_int8":
        image = image_of(choices.below(3), *size, torch.uint8)
        values = [image, *int8_encoder(choices.of((16, 16, 16, 1, 17)), choices.of(ZERO_POINTS))]
        if choices.below(2):
            numbers = choices.of([v for v in values if isinstance(v, Tensor) and not v.is_floating_point()])
            limits = torch.iinfo(numbers.dtype)
            numbers.view(-1)[: 1 + choices.below(3)] = choices.of((limits.min, limits.max))
        return values
    if not op.startswith("conv3x3"):
        return list(arguments_of(op, size=size))
    channels, out_channels = 1 + choices.below(70), 1 + choices.below(40)
    weight = torch.randn(out_channels, channels, 3, 3) / (3 * channels**0.5)
    if op == "conv3x3_pack":
        return [weight]
    packed = torch.ops.wae._conv3x3_pack_reference(weight)
    bias = torch.randn(out_channels) if choices.below(2) else None
    return [torch.randn(2, channels, *size), packed, bias, out_channels, choices.below(2) == 1]


def _digits(dtype: torch.dtype) -> float:
    return -torch.finfo(dtype).eps if dtype.is_floating_point else 0


def _outcome(call, values):
    try:
        return call(*values)
    except (RuntimeError, TypeError) as error:
        return str(error).partition("\n")[0]


def _changed(value, choices: _Choices):
    """Another value; often only the form differs."""
    if not isinstance(value, Tensor):
        if isinstance(value, (list, tuple)):
            return [choices.of(_NUMBERS) for _ in value]
        return not value if isinstance(value, bool) else choices.of(_NUMBERS)
    if value.layout != torch.strided:
        return value
    way = choices.below(8)
    axes = max(value.dim(), 1)
    first, second = choices.below(axes), choices.below(axes)
    if way == 0:
        return value.to(choices.of(_DTYPES))
    if way == 1:
        sizes = list(value.shape)
        sizes[first] = choices.of(_SIZES)
        return torch.rand(sizes).to(value.dtype)
    if way == 2:
        return value.transpose(first, second).contiguous().transpose(first, second)
    if way == 3:  # every second or third element of a longer tensor
        step = 2 + choices.below(2)
        return value.repeat_interleave(step, first)[(slice(None),) * first + (slice(None, None, step),)]
    if way == 4:  # strides of zero
        return value.narrow(first, 0, min(1, value.shape[first])).expand(value.shape)
    if way == 5:  # not at the start of its memory
        return torch.cat((value.new_ones(1), value.flatten()))[1:].view(value.shape)
    if way == 6:
        return value.unsqueeze(first) if second % 2 else value.flatten()
    return value.to_sparse()


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["wae_kernels.checks"]):
        import wae_kernels  # noqa: F401 (first imported here)
    torch.set_num_threads(1)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
