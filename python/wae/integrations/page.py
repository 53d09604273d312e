"""The page of ``wae app``: an image's parts, the predictions of two networks, and the project's measurements.

It uses no fonts and no analytics of other hosts; :mod:`.server` serves it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image
from torch import Tensor

from wae.data import photos
from wae.data.images import LONGEST, ImageError, read_image
from wae.experiments import answers, demo, panels
from wae.models.autoencoder import AutoEncoder
from wae.wording import counted, milliseconds

MAX_PIXELS = 25_000_000
"""The default for the most pixels of an image."""

_AMPLIFIED = 256  # the largest amplification
_AGE = 3600  # seconds after which an upload is deleted

_ABOUT = """# Wavelet-like auto-encoder
A small encoder splits an image into `low` and `high`, each of half its height and width. A network that works
on them sees about a quarter of the pixels. The decoder puts the image back together."""

CSS = """
.divided { position: relative; margin: 0; --at: 50% }
.divided img { display: block; width: 100%; image-rendering: pixelated }
.divided img + img { position: absolute; top: 0; clip-path: inset(0 0 0 var(--at)) }
.divided input { width: 100% }
"""


def build(
    model: AutoEncoder, asked: Sequence[answers.Candidate] = (), max_pixels: int = MAX_PIXELS
) -> gr.Blocks:
    """Build the page.

    Args:
        model: the auto-encoder that decomposes the images.
        asked: the networks whose predictions are shown: see :func:`wae.experiments.answers.candidates`.
        max_pixels: an image with more pixels is refused.
    """
    title = "Wavelet-like auto-encoder"
    page = gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_AGE, _AGE))
    with page:
        gr.Markdown(_ABOUT)
        with gr.Tab("An image"):
            _ImageTab(model, asked, max_pixels)
        with gr.Tab("Measured"):
            _measured()
    return page


# ---------------------------------------------------------------------------------------------- an image


class _ImageTab:
    """The tab's components, and what they show for an uploaded file."""

    def __init__(self, model: AutoEncoder, asked: Sequence[answers.Candidate], max_pixels: int) -> None:
        self._asked = asked
        self._parts = lru_cache(2)(lambda path: panels.parts(model, read_image(path, max_pixels, LONGEST)))
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Image: drop a file here, or choose one", file_types=["image"])
                self._examples(file)
            with gr.Column():
                self._said = gr.HTML(_line("Choose an image."), label="Outcome")
                invert = gr.Checkbox(
                    label="Swap light and dark for the networks (dark clothes on white)", visible=bool(asked)
                )
                self._answers = self._answer_labels()
        with gr.Row():
            self._low = _image("low", "low: the image at half its height and width")
            with gr.Column():
                self._high = _image(
                    "high, amplified", "high: what low leaves out, grey where that is nothing"
                )
                high_by = _amplification("high is amplified by")
        with gr.Row():
            self._divided = gr.HTML(
                label="the image, and its reconstruction", show_label=True, container=True
            )
            with gr.Column():
                self._error = _image(
                    "error, amplified", "error: the reconstruction less the image, grey where that is nothing"
                )
                error_by = _amplification("the error is amplified by")
        self._shown = (self._said, self._low, self._high, high_by, self._divided, self._error, error_by)
        self._connect(file, invert, high_by, error_by)

    def _answer_labels(self) -> list[gr.Label]:
        """A label for each network's answer; without a network, how to get one."""
        if not self._asked:
            gr.Markdown(
                "No network was given: `wae app --weights CHECKPOINT` shows the predictions of a "
                "classifier and of the same network without WAE, with the time of both."
            )
            return []
        with gr.Row():
            return [
                gr.Label(label=f"{candidate.name} says", num_top_classes=answers.TOP)
                for candidate in self._asked
            ]

    def _connect(self, file: gr.File, invert: gr.Checkbox, high_by: gr.Slider, error_by: gr.Slider) -> None:
        """Show an image when the user chooses it, and amplify its parts as the sliders say."""
        gr.on(
            [file.change, invert.change],
            self._show,
            [file, invert],
            [*self._shown, *self._answers],
            api_visibility="private",
        )
        for part, slider, image in (("high", high_by, self._high), ("error", error_by, self._error)):
            slider.input(
                partial(self._amplify, part),
                [file, slider],
                image,
                show_progress="hidden",
                trigger_mode="always_last",
                api_visibility="private",
            )

    @staticmethod
    def _examples(file: gr.File) -> None:
        """Offer the bundled photos that are installed here."""
        found = []
        for name in demo.BUNDLED:
            with suppress(ImageError, ModuleNotFoundError):
                found.append([str(photos.photo_path(name))])
        if found:
            # Static paths are not copied: a copy would be deleted after a while, as uploads are.
            gr.set_static_paths([path for (path,) in found])
            gr.Examples(found, file, label="Or take one of these", api_visibility="private")

    def _show(self, path: str | None, invert: bool) -> list[Any]:
        """The value of each component for the file at ``path``; only the reason if it cannot be used."""
        nothing = [None] * (len(self._shown) - 1 + len(self._answers))
        if path is None:
            return [_line("Choose an image."), *nothing]
        try:
            parts = self._parts(path)
            said = answers.answers(self._asked, parts.image, invert)
        except ImageError as error:
            name = Path(path).name
            return [_line(f"{name}: {str(error).removeprefix(f'{path}: ')}", wrong=True), *nothing]
        height, width = parts.image.shape[1:]
        high_by, error_by = (min(_AMPLIFIED, panels.amplification(x)) for x in (parts.high, parts.error))
        return [
            _line(
                f"{height} x {width} pixels. Reconstructed with a PSNR of {parts.psnr:.2f} dB; the energy of "
                f"high is {100 * parts.energy:.1f} % of low's."
            ),
            panels.draw(parts.low, panels.zoom_of(parts.image)),
            _amplified(parts, parts.high, high_by),
            high_by,
            _divided(parts),
            _amplified(parts, parts.error, error_by),
            error_by,
            *map(_label, said),
        ]

    def _amplify(self, part: str, path: str | None, factor: float) -> Image.Image | None:
        """``high`` or ``error`` of the file at ``path``, amplified; None if there is no usable file."""
        try:
            parts = self._parts(path) if path else None
        except ImageError:
            parts = None
        return None if parts is None else _amplified(parts, getattr(parts, part), factor)


def _amplified(parts: panels.Parts, values: Tensor, factor: float) -> Image.Image:
    return panels.draw(panels.amplified(values, factor), panels.zoom_of(parts.image))


def _image(label: str, described: str) -> gr.Image:
    return gr.Image(
        label=label, alt_text=described, format="png", interactive=False, buttons=["download", "fullscreen"]
    )


def _amplification(label: str) -> gr.Slider:
    return gr.Slider(1, _AMPLIFIED, value=1, step=1, label=label, interactive=True)


def _line(text: str, wrong: bool = False) -> str:
    """A line that screen readers announce when it changes."""
    return f'<p role="{"alert" if wrong else "status"}">{escape(text)}</p>'


def _divided(parts: panels.Parts) -> str:
    """Both images in one place, with a border that, unlike Gradio's ImageSlider's, the keyboard can move."""
    zoom = panels.zoom_of(parts.image)
    image, reconstruction = (
        panels.data_url(panels.draw(x, zoom)) for x in (parts.image, parts.reconstruction)
    )
    return (
        '<figure class="divided">'
        f'<img src="{image}" alt="the image, left of the border">'
        f'<img src="{reconstruction}" alt="the reconstruction, right of the border">'
        "<label>Border: the image left, the reconstruction right"
        '<input type="range" min="0" max="100" value="50" '
        "oninput=\"this.closest('figure').style.setProperty('--at', this.value + '%')\">"
        "</label></figure>"
    )


def _label(answer: answers.Answer) -> dict[str, Any]:
    label = f"{answer.network}, {milliseconds(answer.seconds)} ms"
    return gr.update(value=answer.shares or "time only", label=label)


# ---------------------------------------------------------------------------------------------- measured

_FORMS = {"at 224": "the network", "at 112": "at half the resolution", "deployed": "with WAE"}
_COLOURS = dict(zip(_FORMS.values(), ("#7f7f7f", "#c7c7c7", "#1f77b4"), strict=True))


def _measured() -> None:
    """Show this project's own measurements, which come with the package."""
    file = Path(__file__).with_name("measured.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    gr.Markdown(
        "Measured by the project on its own machines, not here: `wae bench resnet50` measures yours. Speeds "
        "are those of networks with random weights, because speed does not depend on the weights."
    )
    speed = {_title(entry): entry for entry in found["speed"]}
    first = next(iter(speed))
    chosen = gr.Dropdown(list(speed), value=first, label="Network, images at once, machine")
    plot = gr.BarPlot(
        _bars(speed[first]),
        x="how",
        y="ms",
        color="form",
        color_map=_COLOURS,
        sort="y",
        x_title="engine",
        y_title="milliseconds, median",
        x_label_angle=-40,
        tooltip="all",
        height=420,
        title="Time of a call; less is better",
        show_label=False,  # it would push the legend out of sight
    )
    origin = gr.Markdown(_origin(speed[first]))
    chosen.change(
        lambda title: (_bars(speed[title]), _origin(speed[title])),
        chosen,
        [plot, origin],
        api_visibility="private",
    )
    for data in dict.fromkeys(entry["data"] for entry in found["accuracy"]):
        _accuracy(data, [entry for entry in found["accuracy"] if entry["data"] == data])


def _title(entry: dict[str, Any]) -> str:
    return f"{entry['network']}, {entry['images']}, {entry['machine']}, {counted(entry['threads'], 'thread')}"


def _bars(entry: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for side, median in entry["milliseconds"].items():
        form, _, engine = side.partition(" | ")
        for end, name in _FORMS.items():
            if form.endswith(end):
                rows.append({"how": f"{engine}, {name}", "form": name, "ms": median})
    return pd.DataFrame(rows)


def _origin(entry: dict[str, Any]) -> str:
    return f"Of {entry['date']}, commit {entry['commit']}."


def _accuracy(data: str, entries: list[dict[str, Any]]) -> None:
    """Show the accuracies of the trainings on one data set."""
    measure = f"{entries[0]['measure']}, %"
    table = pd.DataFrame(
        {
            "network": f"{entry['network']} (seed {entry['seed']})",
            measure: round(100 * entry["accuracy"], 2),
            "million multiply-adds": round(entry["multiply_adds"] / 1e6, 2),
            "of": f"{entry['date']}, commit {entry['commit']}",
        }
        for entry in entries
    )
    gr.ScatterPlot(
        table,
        x="million multiply-adds",
        y=measure,
        color="network",
        tooltip="all",
        height=320,
        title=f"{data}: {measure} of trainings, by cost of an image",
        show_label=False,
    )
    gr.Dataframe(table, label=f"{data} in numbers", interactive=False)
