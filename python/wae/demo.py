"""``wae demo``: photos taken apart and put together again, and how long that takes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import vgg16

from wae_kernels import backends
from wae_kernels.nn import Decoder, Encoder

from . import data, pictures
from .files import written
from .models.autoencoder import AutoEncoder, to_uint8
from .models.classifier import fold_normalization
from .models.counting import count
from .models.stock import StockDecoder, StockEncoder
from .models.vgg16 import wae_vgg16
from .timing import Timing, interleaved
from .training.linear_start import best_linear, linear_reconstruction
from .training.losses import energy_ratio, psnr

BUNDLED = ("chelsea", "flower", "astronaut", "coffee")
"""The photos shown when none is given. The first two were kept out of training."""

_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_PUBLISHED = {"VGG16": 1289.28, "WAE-VGG16": 411.63}  # ms on a CPU, SPEC section 4


def targets(inputs: Sequence[Path], folder: Path, force: bool) -> list[Path]:
    """Where the picture of each input goes: ``folder/<name>.png``, numbered where two have one name.

    Only what an earlier demo wrote is replaced, unless ``force``; and never an input.

    Raises:
        FileExistsError: a file is in the way.
    """
    found: list[Path] = []
    protected = {path.resolve() for path in inputs}
    for path in inputs:
        target, number = folder / f"{path.stem}.png", 2
        while target in found:
            target, number = folder / f"{path.stem}-{number}.png", number + 1
        if target.resolve() in protected:
            raise FileExistsError(f"{target} is one of the inputs; -o chooses another folder")
        if target.exists() and not (force or pictures.is_demo_picture(target)):
            raise FileExistsError(
                f"{target} exists and is not a picture of an earlier demo; -o chooses another folder, "
                "--force replaces it"
            )
        found.append(target)
    return found


def show_photos(console: Console, model: AutoEncoder, inputs: Sequence[Path], outputs: Sequence[Path]) -> int:
    """Decompose and reconstruct every input, write its picture, print a table; the number of failures."""
    table = Table(title="Decomposed and put back together", title_justify="left")
    for name in ("photo", "size", "PSNR, dB", "best linear, dB", "high / low energy", "picture"):
        table.add_column(name, justify="left" if name in ("photo", "picture") else "right")
    errors = []
    for source, target in track(
        list(zip(inputs, outputs, strict=True)), "photos", console=console, transient=True
    ):
        try:
            table.add_row(*_show_photo(model, source, target))
        except (data.ImageError, OSError) as error:  # noqa: PERF203 (the others shall be shown)
            errors.append(str(error))
    if table.row_count:
        console.print(table)
        console.print(
            "PSNR: peak 255, after rounding. Best linear: the best linear transform of 2x2 blocks that\n"
            "keeps 6 of 12 numbers, fitted to this photo. Energy: mean square of high by variance of low.\n"
        )
    for message in errors:
        console.print(f"error: {message}", style="red", markup=False, highlight=False)
    return len(errors)


@torch.no_grad()
def _show_photo(model: AutoEncoder, source: Path, target: Path) -> list[str]:
    image = data.read_image(source)
    decoded, low, high = (tensor[0] for tensor in model(image[None]))
    reconstruction = to_uint8(decoded)
    with written(target, force=True) as file:
        pictures.save(pictures.picture(model, image, reconstruction, low, high), file)
    height, width = image.shape[1:]
    return [
        source.stem,
        f"{width} x {height}",
        f"{psnr(reconstruction, image):.2f}",
        _best_linear_psnr(image),
        f"{100 * energy_ratio(low[None], high[None]):.1f} %",
        str(target),
    ]


def _best_linear_psnr(image: Tensor) -> str:
    even = image[:, : image.shape[1] // 2 * 2, : image.shape[2] // 2 * 2]
    if even.numel() == 0:
        return "-"
    centred = even.float() - 127.5
    linear = linear_reconstruction(centred, best_linear([centred])) + 127.5
    return f"{psnr(to_uint8(linear), even):.2f}"


# ------------------------------------------------------------------------------------------------- timings


@torch.no_grad()
def show_timings(console: Console, model: AutoEncoder, seconds: float) -> None:
    """Time the ops and WAE-VGG16 against stock PyTorch on this machine, and print two tables.

    Args:
        seconds: for each of the two, warm-up not counted.

    Raises:
        RuntimeError: two ways of computing the same thing do not agree; then nothing is timed.
    """
    with console.status("timing encode and decode"):
        table = _time_ops(model, seconds)
    console.print(table)
    with console.status("timing VGG16"):
        table = _time_networks(model, seconds)
    console.print(table)
    console.print(
        "Published: Chen et al., AAAI 2018, on an i7 at 3.5 GHz; other hardware and software than here.\n"
        "The networks here have random weights: only their time is meant. Multiply-adds include the encoder."
    )


def _machine() -> str:
    threads = torch.get_num_threads()
    backend = backends.backend_for("cpu")
    return f"backend {backend}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"


def _time_ops(model: AutoEncoder, seconds: float) -> Table:
    encoders = _fused_and_stock(model.encoder, Encoder, StockEncoder)
    decoders = _fused_and_stock(model.decoder, Decoder, StockDecoder)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low, high = model.encoder(image)

    def call(
        name: str, module: nn.Module, tensors: Sequence[Tensor], *size: Sequence[int]
    ) -> Callable[[], Any]:
        memory_format = _FORMATS[name.rpartition(", ")[2]]
        return partial(module, *(t.contiguous(memory_format=memory_format) for t in tensors), *size)

    runs = {("encode", name): call(name, module, [image]) for name, module in encoders.items()}
    runs |= {
        ("decode", name): call(name, module, [low, high], (224, 224)) for name, module in decoders.items()
    }
    for op, modules in (("encode", encoders), ("decode", decoders)):
        _require_equal(op, [runs[op, name]() for name in modules])
    timings = interleaved({" ".join(key): run for key, run in runs.items()}, seconds)

    table = Table(title=f"One 224 x 224 image, float32 ({_machine()})", title_justify="left")
    for column in ("op", "runs through", "ms, median", "10-90 %", "against stock NCHW"):
        table.add_column(column, justify="left" if column in ("op", "runs through") else "right")
    for op, name in runs:
        timing, stock = timings[f"{op} {name}"], timings[f"{op} stock PyTorch, NCHW"]
        table.add_row(op, name, *_cells(timing), f"{stock.median / timing.median:.2f}x")
    return table


def _fused_and_stock(
    weights: nn.Module, fused: type[nn.Module], stock: type[nn.Module]
) -> dict[str, nn.Module]:
    """Both kinds of module with the same weights, in both memory formats, by their name in the table."""
    modules = {}
    for label, kind in (("wae_kernels", fused), ("stock PyTorch", stock)):
        for name, memory_format in _FORMATS.items():
            module = kind()
            module.load_state_dict(weights.state_dict())
            modules[f"{label}, {name}"] = module.to(memory_format=memory_format)
    return modules


def _time_networks(model: AutoEncoder, seconds: float) -> Table:
    wae = fold_normalization(wae_vgg16(encoder=model.encoder))
    stock = vgg16().eval()
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with backends.use("reference"):
        expected = wae(image)
    _require_equal("WAE-VGG16", [wae(image), expected])
    networks = {"VGG16": stock, "WAE-VGG16": wae}
    timings = interleaved({n: partial(m, image) for n, m in networks.items()}, seconds, warmup=1)

    table = Table(title="One 224 x 224 image through a classifier, eager, NCHW", title_justify="left")
    for column in (
        "network",
        "ms, median",
        "10-90 %",
        "speed",
        "published ms",
        "published speed",
        "G multiply-adds",
    ):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, network in networks.items():
        table.add_row(
            name,
            *_cells(timings[name]),
            f"{timings['VGG16'].median / timings[name].median:.2f}x",
            f"{_PUBLISHED[name]:.0f}",
            f"{_PUBLISHED['VGG16'] / _PUBLISHED[name]:.2f}x",
            f"{count(network).multiply_adds / 1e9:.2f}",
        )
    return table


def _cells(timing: Timing) -> list[str]:
    return [f"{1e3 * timing.median:.2f}", f"{1e3 * timing.p10:.2f}-{1e3 * timing.p90:.2f}"]


def _require_equal(what: str, results: Sequence[Any]) -> None:
    """Raise unless all results are the first, to what float32 arithmetic in another order allows."""
    first, *others = ([r] if isinstance(r, Tensor) else list(r) for r in results)
    for other in others:
        for a, b in zip(first, other, strict=True):
            if (a - b).norm() > 1e-4 * b.norm():
                raise RuntimeError(f"{what}: two backends disagree; `wae info` tells which there are")
