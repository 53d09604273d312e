"""The plan of a training, stage by stage, read from a TOML file.

The plans that come with the package are in ``wae/training/plans``. The entries are the attributes of
:class:`Plan` and :class:`Stage`, which explain them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from wae.errors import UsageError
from wae.wording import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLANS = Path(__file__).parent / "plans"
"""The folder of the plans that come with this package."""

KINDS = ("transform", "classifier", "joint")
"""The three stages, in the order of docs/network.md: ``--stage 1`` is the first."""

EPOCHS = (1, 10**6)
"""The least and the largest number of epochs of a stage, and so on."""
BATCH = (1, 10**7)
WEIGHT = (0.0, 1e6)  # of a term of the loss; also a learning rate
SEED = (0, 2**31)

EPOCH_STEPS = 500
"""The most steps of an epoch if the auto-encoder is trained alone: random crops have no natural epoch."""


class PlanError(UsageError):
    """A plan that cannot be used. The message names the entry, its value and what it must be."""


@dataclass(frozen=True)
class Stage:
    """One stage of a training. Raises PlanError if an entry cannot be used."""

    kind: str
    """What is trained: ``transform``, encoder and decoder on the transform loss; ``classifier``, the rest on
    the cross entropy; ``joint``, everything on ``cross entropy + transform_weight * transform loss``."""
    epochs: int
    learning_rate: float
    """The peak learning rate."""
    optimizer: str = "sgd"
    """``sgd`` (Nesterov), ``adam`` or ``adamw``."""
    momentum: float = 0.9
    """The momentum of SGD."""
    weight_decay: float = 0.0
    """For matrices and convolution kernels, except those of encoder and decoder; not for class tokens,
    position tables and scales: see :func:`wae.training.optimization.spared_from_decay`."""
    encoder_rate: float = 1.0
    """The learning rate of encoder and decoder in a joint stage, as a share of the others'."""
    schedule: str = "cosine"
    """``cosine``: the rate falls to zero over the stage; ``step``: it is multiplied by ``step_factor`` every
    ``step_epochs`` epochs; ``constant``."""
    warmup: float = 0.0
    """Epochs at the start in which the rate rises from zero."""
    step_epochs: int = 30
    step_factor: float = 0.1
    label_smoothing: float = 0.0
    class_balance: float = 0.0
    """For segmentation: the weight of a class in the cross entropy is
    ``1 / ln(class_balance + its share of the training pixels)``, so that rare classes count more. Above 1
    (ENet uses 1.02), or 0 for equal weights."""
    energy_weight: float = 1e-3
    """lambda of the transform loss: the weight of the energy of ``high``."""
    transform_weight: float = 1e-3
    """gamma of the joint loss: the weight of the transform loss. With 0 the decoder is not trained."""
    low_weight: float = 0.0
    """The weight in the loss of the cross entropy of the low classifier alone. For segmentation it is that of
    the scores of the network on ``low``."""
    sparsity: float = 0.0
    """The share of each weight tensor, smallest numbers first, that is kept at zero in the stage.
    Dense-sparse-dense training is three joint stages, the second with a sparsity."""
    mimic_weight: float = 0.0
    """The weight in the loss of the distance to a teacher's scores (knowledge distillation)."""
    mimic_temperature: float = 1.0
    """The divisor of both scores in that distance."""
    mimic_mirrored: bool = False
    """Average the teacher's scores over the image and its mirror image. If left and right do not matter, that
    makes a better teacher, for one more pass through it."""
    ema: float = 0.0
    """Decay per step of a moving average of the weights, which is evaluated and kept; 0 for none."""

    def __post_init__(self) -> None:
        _choice(self, "kind", KINDS)
        _choice(self, "optimizer", ("sgd", "adam", "adamw"))
        _choice(self, "schedule", ("cosine", "step", "constant"))
        _numbers(self, int, *EPOCHS, "epochs", "step_epochs")
        _numbers(
            self, float, *WEIGHT, "learning_rate", "weight_decay", "encoder_rate", "warmup", "step_factor"
        )
        _numbers(self, float, *WEIGHT, "energy_weight", "transform_weight", "low_weight", "mimic_weight")
        _numbers(self, float, 1e-3, 1e6, "mimic_temperature")
        _truth(self, "mimic_mirrored")
        _numbers(self, float, 0, 10, "class_balance")
        if 0 < self.class_balance <= 1:  # the weight of a class could be infinite or negative
            raise PlanError(f"class_balance must be 0 or a number above 1, got {self.class_balance!r}")
        _numbers(self, float, 0, 1, "momentum", "label_smoothing", "sparsity", "ema")
        for name in ("momentum", "sparsity", "ema"):  # at 1 nothing would be learned
            if getattr(self, name) == 1:
                raise PlanError(f"{name} must be a number below 1, got {getattr(self, name)!r}")

    def lasting(self, epochs: int) -> Stage:
        """The stage with this number of epochs; warm-up and steps of the rate keep their share of them."""
        if epochs == self.epochs:
            return self
        longer = replace(self, epochs=epochs, warmup=self.warmup * epochs / self.epochs)
        if self.schedule != "step":
            return longer
        return replace(longer, step_epochs=max(1, round(self.step_epochs * epochs / self.epochs)))


@dataclass(frozen=True)
class Plan:
    """Everything besides the data that determines the outcome of a training.

    Raises PlanError as Stage does.
    """

    model: str
    """The name of the network, for the record."""
    stages: tuple[Stage, ...]
    batch: int = 128
    """Images per step, over all processes."""
    accumulate: int = 1
    """Parts in which each process computes its share of a batch, to save memory."""
    precision: str = "float32"
    """``float32``, or ``float16`` or ``bfloat16`` for automatic mixed precision."""
    start: str = "random"
    """``linear``: encoder and decoder are initialised as the best linear transform of 2 x 2 blocks, with the
    least energy in ``high``; ``small_image``: with a ``low`` that is a small image, for a body that was
    trained on images."""
    norm_statistics: str = "batch"
    """The statistics that normalise ``low`` and ``high`` in training: those of the ``batch``; ``fixed`` ones,
    measured before each stage; or ``kept``: ``low`` keeps those of the network, for a trained low body, and
    those of ``high`` are measured."""
    remeasure_norms: bool = False
    """Re-estimate the statistics of all BatchNorms at the end, on training images without augmentation. Those
    that ``norm_statistics`` fixes are kept. See :func:`wae.training.norms.remeasure_norms`."""
    seed: int = 0
    """Seeds the random weights, the order of the data, augmentation and dropout."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise PlanError("stages must hold at least one stage")
        _choice(self, "precision", ("float32", "float16", "bfloat16"))
        _choice(self, "start", ("random", "linear", "small_image"))
        _choice(self, "norm_statistics", ("batch", "fixed", "kept"))
        _truth(self, "remeasure_norms")
        _numbers(self, int, *BATCH, "batch", "accumulate")
        _numbers(self, int, *SEED, "seed")
        if type(self.model) is not str:
            raise PlanError(f"model must be a name, got {shown(self.model)}")

    def only(self, *kinds: str) -> Plan:
        """The plan with only its stages of these kinds. Raises PlanError if it has none."""
        stages = tuple(stage for stage in self.stages if stage.kind in kinds)
        if not stages:
            got = ", ".join(stage.kind for stage in self.stages)
            raise PlanError(f"stages must hold at least one stage of kind {' or '.join(kinds)}, got {got}")
        return replace(self, stages=stages)

    def at_rate(self, rate: float) -> Plan:
        """The plan with the learning rate ``rate`` in its stages with labels, or in all if none has labels.

        Stage 1 keeps its own: its optimizer is often another one than that of the stages with labels, and a
        rate that suits SGD makes Adam destroy the auto-encoder within some steps.
        """
        alone = all(stage.kind == "transform" for stage in self.stages)
        stages = (
            replace(stage, learning_rate=rate) if alone or stage.kind != "transform" else stage
            for stage in self.stages
        )
        return replace(self, stages=tuple(stages))

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return {**asdict(self), "stages": [asdict(stage) for stage in self.stages]}

    def without_encoder(self, low: bool = False) -> Plan:
        """The plan for a network without an encoder to train: the stages with labels, as kind ``classifier``.

        Args:
            low: whether a part of the network works on the ``low`` of the Haar transform. Otherwise
                ``low_weight`` becomes 0.

        Raises PlanError if there is no stage with labels.
        """
        if all(stage.kind == "transform" for stage in self.stages):
            raise PlanError(
                f"stages must hold at least one stage with labels, because {self.model} has no encoder to "
                "train; got transform"
            )
        stages = tuple(
            replace(stage, kind="classifier", low_weight=stage.low_weight if low else 0.0)
            for stage in self.stages
            if stage.kind != "transform"
        )
        return replace(self, stages=stages, start="random")

    def as_toml(self) -> str:
        """The plan in the format that :func:`read` reads."""
        entries = self.as_dict()
        tables = [entries, *entries.pop("stages")]
        blocks = ("\n".join(f"{name} = {_toml(value)}" for name, value in t.items()) for t in tables)
        return "\n\n[[stages]]\n".join(blocks) + "\n"


def differences(made: Mapping[str, Any], plan: Plan) -> str:
    """How another plan, given as JSON data, differs from ``plan``, for a sentence; "" if it does not."""
    wanted: dict[str, Any] = json.loads(json.dumps(plan.as_dict()))
    with suppress(PlanError):  # entries that did not exist yet had their defaults
        made = from_dict(made).as_dict()
    names = changed({**made, "stages": None}, {**wanted, "stages": None})
    theirs, ours = made.get("stages", []), wanted["stages"]
    if len(theirs) != len(ours):
        names.append(f"number of stages ({len(theirs)}, not {len(ours)})")
    for number, (one, other) in enumerate(zip(theirs, ours, strict=False), 1):
        names += [f"{name} of stage {number}" if len(ours) > 1 else name for name in changed(one, other)]
    return ", ".join(names)


def changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The entries that differ, sorted: each name, followed by the values in brackets if they are short."""
    names = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
    values = [f"{one.get(name)!r}, not {other.get(name)!r}" for name in names]
    return [
        f"{name} ({value})" if len(value) < 60 else name for name, value in zip(names, values, strict=True)
    ]


def find(name: str) -> Plan:
    """The plan called ``name``: a TOML file, or one that comes with the package.

    Raises PlanError if there is neither, or the file holds no usable plan.
    """
    if Path(name).is_file():
        return read(Path(name))
    shipped = _shipped()
    if name.replace("-", "_") not in shipped:
        known = ", ".join(sorted(shipped))
        raise PlanError(f"{name}: is neither a file nor one of the plans {known}")
    return read(shipped[name.replace("-", "_")])


def listed() -> str:
    """The plans that come with the package, one per line: the name and the first sentence of the file."""
    lines = [
        f"{name:18}{path.read_text(encoding='utf-8').partition('. ')[0].lstrip('# ')}"
        for name, path in _shipped().items()
    ]
    return "\n".join(line.replace("\n# ", " ") for line in lines)


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(PLANS.glob("*.toml"))}


def read(path: Path) -> Plan:
    """The plan in a TOML file. Raises PlanError with a message that begins with the file's name."""
    try:
        with open(path, "rb") as file:
            entries = tomllib.load(file)
        return from_dict(entries)
    except FileNotFoundError:
        raise PlanError(f"{path}: there is no such file") from None
    except RecursionError:
        raise PlanError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # bad encoding, bad TOML, an endless number, or a bad entry
        raise PlanError(f"{path}: {error}") from None


def from_dict(entries: Mapping[str, Any]) -> Plan:
    """The plan with these entries, of which ``stages`` is a list of tables.

    Raises PlanError if an entry is unknown, missing or has a value that cannot be used.
    """
    tables = entries.get("stages", ())
    if not isinstance(tables, (list, tuple)) or not all(isinstance(table, Mapping) for table in tables):
        raise PlanError(f"stages must be tables, [[stages]], got {shown(tables)}")
    stages = tuple(_stage(number, table) for number, table in enumerate(tables, 1))
    return Plan(**{**_known(Plan, entries), "stages": stages})


def _stage(number: int, table: Mapping[str, Any]) -> Stage:
    try:
        return Stage(**_known(Stage, table))
    except PlanError as error:
        raise PlanError(f"stage {number}: {error}") from None


def _known(kind: type[Stage] | type[Plan], entries: Mapping[str, Any]) -> dict[str, Any]:
    """``entries``, after a check that ``kind`` has all of them and that none it needs is missing."""
    names = [field.name for field in fields(kind)]
    if unknown := sorted(set(entries) - set(names)):
        raise PlanError(f"there is no entry {shown(unknown[0])}; known are {', '.join(names)}")
    needed = {"kind", "epochs", "learning_rate", "model"} & set(names)
    if missing := sorted(needed - set(entries)):
        raise PlanError(f"{missing[0]} is missing")
    return dict(entries)


def _choice(owner: Stage | Plan, name: str, values: tuple[str, ...]) -> None:
    if getattr(owner, name) not in values:
        raise PlanError(f"{name} must be one of {', '.join(values)}, got {shown(getattr(owner, name))}")


def _truth(owner: Stage | Plan, name: str) -> None:
    if type(value := getattr(owner, name)) is not bool:
        raise PlanError(f"{name} must be true or false, got {shown(value)}")


def _numbers(owner: Stage | Plan, kind: type, least: float, most: float, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        whole = type(value) is int
        if not (whole or (kind is float and type(value) is float)) or not least <= value <= most:
            what, form = ("an integer", "d") if kind is int else ("a number", "g")
            raise PlanError(f"{name} must be {what} from {least:{form}} to {most:{form}}, got {shown(value)}")


def _toml(value: Any) -> str:
    """A text or number in TOML: as in JSON, except that TOML has no surrogate pairs and needs DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
