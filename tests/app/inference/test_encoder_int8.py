"""The int8 encoder: its results are near those in float32, and it is used if it runs here and is faster."""

import pytest
import torch

import wae_kernels
from wae.data.photos import HELD_OUT, photo
from wae.inference import encoder_int8
from wae.inference.encoder_int8 import (
    ByteEncoder,
    Int8Encoder,
    hand_bytes_over,
    largest_activations,
    put_where_faster,
    quantize,
)
from wae.inference.engines import Prepared
from wae.inference.engines.int8 import ByteInput
from wae.inference.front import Front
from wae.inference.timing import Timing
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.storage import weights_file
from wae.storage.weights_file import WEIGHTS
from wae.training.losses import psnr
from wae_kernels import backends
from wae_kernels.nn import Encoder

needs_kernel = pytest.mark.skipif(not backends.int8_runs(), reason="this CPU has no VNNI")


def photos(side=224):
    return torch.stack([photo(name)[:, :side, :side] for name in HELD_OUT])


@pytest.fixture(scope="module")
def published():
    """The auto-encoder that is shipped, and its encoder in int8."""
    model = AutoEncoder().eval()
    weights_file.load(WEIGHTS / "autoencoder.safetensors", model)
    affine = model.image_scale, model.image_shift
    return model, quantize(model.encoder, *affine, largest_activations(model.encoder, *affine, [photos()]))


class TakesBytes(Prepared):
    """Stands in for an engine's network that takes these inputs as bytes."""

    for_batch = save = None

    def __init__(self, inputs):
        self.take_bytes = lambda: inputs


def in_int8(encoder, image):
    """By the kernel, or by the reference if there is none: the results are the same."""
    return wae_kernels.encode_int8(image, *encoder.buffers())


@torch.no_grad()
def test_a_decoded_photo_is_close_to_that_of_float32(published):
    model, quantized = published
    image = photos(96)
    exact = model.decompose(image)
    rounded = in_int8(quantized, image)
    for wanted, got in zip(exact, rounded, strict=True):
        assert got.dtype == torch.float32
        assert 0 < (got - wanted).norm() < (0.03 * exact[0]).norm()
    decoded = [to_uint8(model.reconstruct(*parts, image.shape[2:])) for parts in (exact, rounded)]
    assert psnr(*decoded) > 42


@torch.no_grad()
@pytest.mark.parametrize("factor", [1 / 16, 16])
def test_scales_of_the_largest_activations_are_better_than_others(published, factor):
    """Smaller scales clip values, larger ones waste bits."""
    model, quantized = published
    image, affine = photos(96), (model.image_scale, model.image_shift)
    largest = largest_activations(model.encoder, *affine, [photos()])
    other = quantize(model.encoder, *affine, [factor * x for x in largest])
    low, _ = model.decompose(image)
    errors = [(in_int8(encoder, image)[0] - low).norm() for encoder in (quantized, other)]
    assert errors[1] > 2 * errors[0]


@torch.no_grad()
def test_what_int8_does_not_support_goes_to_the_float32_encoder(published):
    model, quantized = published
    affine = model.image_scale, model.image_shift
    image = photos(32)
    for given, backend in ((image.float(), "auto"), (image, "reference")):
        with backends.use(backend):
            for got, wanted in zip(quantized(given, *affine), model.encoder(given, *affine), strict=True):
                assert torch.equal(got, wanted)


@needs_kernel
@torch.no_grad()
def test_uint8_images_go_to_the_kernel(published):
    _, quantized = published
    image = photos(32)
    for got, wanted in zip(quantized(image), in_int8(quantized, image), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [pytest.param("uint8", marks=needs_kernel), "float32"])
@torch.no_grad()
def test_an_engine_that_takes_bytes_gets_them(published, dtype):
    """Also for a floating-point image, which the float32 encoder computes."""
    image, front = photos(32).to(getattr(torch, dtype)), front_of(published[1])
    numbers = front(image)
    steps = [float(x.abs().max()) / 100 for x in numbers]
    inputs = [ByteInput(steps[0], 120, torch.uint8), ByteInput(steps[1], 3, torch.int8)]
    hand_bytes_over(front, TakesBytes(inputs))
    assert isinstance(front.encoder, ByteEncoder)
    for got, wanted, each in zip(front(image), numbers, inputs, strict=True):
        assert got.dtype == each.dtype
        assert ((got.int() - each.zero_point) * each.scale - wanted).abs().max() <= 0.5001 * each.scale


def test_an_engine_without_byte_inputs_or_an_int8_encoder_keeps_the_encoder(published):
    some = [ByteInput(1.0, 0, torch.uint8)] * 2
    for encoder, inputs in ((published[1], ()), (Encoder(), some)):
        front = front_of(encoder)
        hand_bytes_over(front, TakesBytes(inputs))
        assert front.encoder is encoder


@torch.no_grad()
@pytest.mark.parametrize("factor", [0, 1e-30, 1e-7])
def test_channels_with_next_to_no_weights_equal_their_bias(factor):
    """Weight decay leaves such channels. In units of their weights, the bias would have too many bits."""
    encoder = Encoder()
    for layer in encoder.children():
        layer.weight[::2] *= factor
        layer.bias[::4] = 0
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    scale, shift = torch.full((3,), 1 / 64), torch.full((3,), -2.0)
    quantized = quantize(encoder, scale, shift, largest_activations(encoder, scale, shift, [image]))
    for got, wanted in zip(in_int8(quantized, image), encoder(image, scale, shift), strict=True):
        assert (got - wanted).norm() < 0.05 * wanted.norm()
        assert torch.allclose(got[:, 2], wanted[:, 2], atol=1e-5)


def test_quantization_does_not_depend_on_the_default_dtype(published):
    model, quantized = published
    affine, inputs = (model.image_scale, model.image_shift), [ByteInput(0.1, 0, torch.uint8)] * 2
    wanted = ByteEncoder(quantized, inputs).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        again = quantize(model.encoder, *affine, largest_activations(model.encoder, *affine, [photos()]))
        found = ByteEncoder(again, inputs).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_padding_that_is_not_a_byte_is_refused():
    with pytest.raises(encoder_int8.QuantizationError, match=r"no byte represents 0 with image_scale \[1\.0"):
        quantize(Encoder(), None, torch.ones(3), [1.0, 1.0, 1.0])


# ---------------------------------------------------------------------------------- in front of an engine


def front_of(encoder, shift=-1.0):
    affine = torch.full((3,), 1 / 128), torch.full((3,), shift)
    return Front(encoder, torch.empty(0), *affine, torch.float32, torch.contiguous_format)


@pytest.fixture
def timed(monkeypatch):
    """Sets the seconds that the timing of both encoders returns."""

    def set_seconds(float32, int8):
        found = {"float32": Timing(float32, 0, 0, 3), "int8": Timing(int8, 0, 0, 3)}
        monkeypatch.setattr(encoder_int8, "interleaved", lambda functions, _: found)

    return set_seconds


@needs_kernel
@pytest.mark.parametrize(("float32", "int8", "faster"), [(2.0, 1.0, "int8"), (1.0, 2.0, "float32")])
def test_the_faster_encoder_is_used(timed, float32, int8, faster):
    timed(float32, int8)
    front, image = front_of(Encoder()), photos(32)
    report = put_where_faster(front, image, [image])
    assert report == {"precision": faster, "seconds": {"float32": float32, "int8": int8}}
    assert isinstance(front.encoder, Int8Encoder if faster == "int8" else Encoder)
    assert front(image)[0].dtype == torch.float32


def test_float32_stays_if_int8_is_not_possible(timed):
    timed(2.0, 1.0)
    image, hooked = photos(32), Encoder()
    hooked.conv1.register_forward_hook(lambda layer, args, output: 2 * output)
    cases = [
        (front_of(Encoder(8)), image),
        (front_of(hooked), image),
        (front_of(Encoder()), image.float()),
        (front_of(Encoder(), shift=1.0), image),
    ]
    for front, images in cases:
        before = front.encoder
        assert put_where_faster(front, images, [images]) == {"precision": "float32"}
        assert front.encoder is before
    front = front_of(Encoder())
    with backends.use("reference"):
        assert put_where_faster(front, image, [image]) == {"precision": "float32"}
    assert put_where_faster(front_of(None), image, [image]) == {}
