"""Classifiers on the Hugging Face Hub: :class:`HubClassifier`, which uses the library's mixin.

A repository holds ``model.safetensors``, which is a checkpoint (:mod:`wae.storage.checkpoint`) that ``wae
predict --weights`` takes, ``config.json`` with the same description, and a model card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from torch import nn

from wae.data.input import Input, Transforms
from wae.models.plain import Wrapper
from wae.storage import weights_file
from wae.storage.checkpoint import Description, describe_classifier, load_classifier, save_classifier

_DESCRIBED = ("architecture", "input", "labels")  # the entries of a recipe that Description holds

_CARD = """\
---
{{ card_data }}
---

# {{ network }}

A classifier of {{ classes }} classes, {{ parameters }} parameters, by a
[wavelet-like auto-encoder]({{ paper_url }}); made with wae-kernels.
{% if labels %}
Classes: {{ labels | join(", ") }}.
{% endif %}
```python
from wae.integrations.huggingface import HubClassifier

model = HubClassifier.from_pretrained({{ model_id | tojson }})
scores = model(model.transforms()(image)[None])  # of an image of Pillow
```

| | |
|---|---|
| images | {{ input }} |
| data | {{ data }} |
| accuracy | {{ accuracy }} |
| speed | {{ speed }} |
| licence of the weights | {{ licence }} |

## Recipe

```json
{{ recipe }}
```
"""


class HubClassifier(
    Wrapper,
    PyTorchModelHubMixin,
    paper_url="https://arxiv.org/abs/1712.07493",
    library_name="wae-kernels",
    pipeline_tag="image-classification",
    tags=["wae", "wavelet"],
    model_card_template=_CARD,
):
    """A classifier and its checkpoint's description, with the Hub's methods.

    They are ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``. The argument ``model_card_kwargs``
    of the last two fills the model card: ``data``, ``accuracy``, ``speed``, ``model_id`` and ``licence``, the
    last as the Hub names it (``apache-2.0``). Other facts come from the checkpoint, or are "not stated".

    Args:
        model: maps images, (N, 3, H, W), uint8 or floating point, to scores, (N, classes).
        described: the description of its checkpoint.
        made: how the weights were made; anything that JSON can hold.
    """

    def __init__(
        self, model: nn.Module, described: Description, made: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(model)
        self.described = described
        self.made = dict(made or {})

    @classmethod
    def from_checkpoint(cls, path: Path | str) -> HubClassifier:
        """Load a checkpoint that ``wae train`` or ``wae accelerate`` wrote, in evaluation mode, on the CPU.

        Raises:
            CheckpointError: see :func:`wae.storage.checkpoint.load_classifier`; or it is a segmentation
                network.
        """
        path = Path(path)
        described, model = describe_classifier(path), load_classifier(path)
        recipe = weights_file.read_recipe(path)
        made = {name: value for name, value in recipe.items() if name not in _DESCRIBED}
        return cls(model, described, made).eval()

    def transforms(self, invert: bool = False) -> Transforms:
        """The transforms from an image to the network's input: see :class:`wae.data.input.Transforms`."""
        return self.described.transforms(invert)

    def generate_model_card(self, **given: Any) -> ModelCard:
        """The model card. See the class for what may be given."""
        described = self.described
        facts = {
            "model_id": "OWNER/NAME",
            "data": "not stated",
            "accuracy": _accuracy(self.made.get("accuracy")),
            "speed": "not stated; `wae bench` measures it",
            "licence": "not stated",
            **given,
        }
        card = super().generate_model_card(
            network=described.network,
            classes=described.classes,
            labels=described.labels,
            input=_sentence(described.input),
            parameters=f"{sum(parameter.numel() for parameter in self.model.parameters()):,}",
            recipe=json.dumps(self.made, indent=1),
            **facts,
        )
        if "licence" in given:
            assert isinstance(card.data, ModelCardData)
            card.data.license = given["licence"]
        return card

    def _save_pretrained(self, save_directory: Path) -> None:
        described = self.described
        save_classifier(
            save_directory / SAFETENSORS_SINGLE_FILE,
            self.model,
            described.network,
            described.labels,
            described.input,
            self.made,
            force=True,
            form=described.form,
        )
        (save_directory / "config.json").write_text(json.dumps(asdict(described), indent=1))

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
    ) -> HubClassifier:
        """Load from a folder or the Hub. ``strict`` makes no difference: a checkpoint is always complete."""
        if (folder := Path(model_id)).is_dir():
            return cls.from_checkpoint(folder / SAFETENSORS_SINGLE_FILE).to(map_location)
        known = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        wanted = {name: options[name] for name in known}
        file = hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, **wanted)
        return cls.from_checkpoint(file).to(map_location)


def _accuracy(recorded: Any) -> str:
    """The accuracy in a recipe, which may hold anything under that name, for the card."""
    if isinstance(recorded, (list, tuple)) and recorded:  # from wae train: top-1, top-5, loss and images
        recorded = recorded[0]
    if isinstance(recorded, (int, float)):
        return f"{100 * recorded:.2f} % of its validation images"
    return "not stated"


def _sentence(input: Input) -> str:
    """How a photo becomes the network's input, for the card."""
    size = "{} x {}".format(*input.shape)
    how = f"({input.interpolation}){', in grey' if input.grayscale else ''}"
    if input.is_whole:
        return f"the full image, scaled to {size} {how}"
    scaled = "both sides" if input.squash else "the shorter side"
    return f"{size} out of the middle, {scaled} scaled to {input.resize} {how}"
