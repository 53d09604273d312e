"""Deploys every network of an acceleration in its fastest form, and exports the accelerated one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from wae.data.dataset import sample
from wae.experiments.machine import machine, timed
from wae.inference.agreement import DisagreementError
from wae.inference.batches import in_chunks
from wae.inference.deploy import deploy
from wae.inference.deployed import Deployed
from wae.inference.engines import EngineError
from wae.inference.export import export
from wae.inference.timing import Timing
from wae.models.accelerated import Form
from wae.models.classifier import WAEClassifier, fold_normalization
from wae.models.counting import count
from wae.storage.checkpoint import Description
from wae.wording import first_line

from . import baselines
from .folder import DEPLOYED, ONNX, Record
from .measuring import SECONDS, accuracies, call, images_of_a_call
from .networks import described
from .task import Task

_CALIBRATED = 100  # images for calibration at most, and the same number to check the result
_AT_ONCE = 64  # images in a batch when a deployed network is evaluated


class _Contender(NamedTuple):
    """A network, the height and width of its images, and its fastest form."""

    network: nn.Module
    """As it runs in PyTorch: WAE with folded normalisations, as where baselines are pruned to its time."""
    side: int
    deployed: Deployed


class Filled(nn.Module):
    """A deployed network as a module that takes batches of any size."""

    def __init__(self, deployed: Deployed) -> None:
        super().__init__()
        self.forward = in_chunks(deployed, deployed.batch)


def deploy_all(task: Task, record: Record, model: WAEClassifier, size: int) -> dict[str, Any]:
    """Deploy every network in its fastest form, and measure accuracies and interleaved times.

    The accelerated network, ``model`` for images of ``size``, is also saved.
    """
    s = task.settings
    task.say(f"deploying, engine {s.engine}, precision {s.precision}; takes minutes if an engine compiles")
    contenders = _contenders(task, record, model, size)
    times, others = _times(task, contenders)
    found: dict[str, Any] = {"images": s.images, "machine": machine(task.device), "others": others}
    for name, (network, side, deployed) in contenders.items():
        accuracy, classes = accuracies(task, Filled(deployed), task.sets(side).test, _AT_ONCE)
        found[name] = {
            "engine": deployed.engine,
            "precision": deployed.precision,
            "accuracy": accuracy.score,
            "classes": classes,
            "seconds": times[f"{name}, deployed"].median,
            "eager seconds": times[f"{name}, PyTorch"].median,
            "drop": deployed.report["drop"],
            "multiply_adds": count(network, (side, side)).multiply_adds,
        }
    try:
        contenders["accelerated"].deployed.save(task.settings.folder / DEPLOYED, force=True)
    except (EngineError, DisagreementError) as error:  # on GPUs no engine can be saved
        found["accelerated"]["not saved"] = first_line(error)
    return found


def fastest(task: Task, model: nn.Module, size: int) -> Deployed:
    """The fastest deployed form of ``model`` that the settings allow, for images of ``size``."""
    s, plain = task.settings, task.sets(size).plain
    images = min(_CALIBRATED, len(sample(plain, 2 * _CALIBRATED)[0]) // 2)
    return deploy(
        model, (size, size), s.images, s.engine, precision=s.precision, calibration=plain,
        calibration_images=images, max_drop=s.max_drop, seconds=SECONDS,
    )  # fmt: skip


def _needed(task: Task, name: str, model: nn.Module, size: int) -> Deployed:
    """:func:`fastest` of a network without which there is no report. The error says how to go on."""
    try:
        return fastest(task, model, size)
    except (EngineError, DisagreementError) as error:
        raise type(error)(
            f"the {name} network: {error}; what was trained is kept: the same command with another "
            "--precision, --engine or --max-drop continues"
        ) from None


def write_onnx(task: Task, model: WAEClassifier, form: Form) -> dict[str, Any]:
    """Write the ONNX file, or return why it cannot be written."""
    name, labels, input = described(task, form)
    about = Description(name, len(labels), labels, input, form)
    path, size = task.settings.folder / ONNX, (form.size, form.size)
    try:
        report = export(model.cpu(), path, "onnx", size, force=True, described=about)
    except (EngineError, DisagreementError) as error:
        return {"not written": first_line(error)}
    finally:
        model.to(task.device)
    return {"difference": report["difference"]}


def _contenders(task: Task, record: Record, model: WAEClassifier, size: int) -> dict[str, _Contender]:
    """Each network in its fastest form. A baseline that no engine runs is left out, also in the record."""
    stock = task.original.classifier().to(task.device)
    contenders = {
        "original": _Contender(stock, task.side, _needed(task, "original", stock, task.side)),
        "accelerated": _Contender(fold_normalization(model), size, _needed(task, "accelerated", model, size)),
    }
    for name in baselines.NAMES:
        result = record.found.get(f"baseline: {name}", {"left out": ""})
        if "left out" in result:
            continue
        baseline = baselines.trained_baseline(task, name, result)
        try:
            contenders[name] = _Contender(baseline, task.side, fastest(task, baseline, task.side))
        except (EngineError, DisagreementError) as error:
            result["left out"] = first_line(error)
    return contenders


def _times(task: Task, contenders: Mapping[str, _Contender]) -> tuple[Mapping[str, Timing], float | None]:
    """The times of one call of each network, in PyTorch and deployed: see :func:`timed`."""
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, (network, side, deployed) in contenders.items():
        images = images_of_a_call(task, side)
        calls[f"{name}, PyTorch"] = call(network, images)
        calls[f"{name}, deployed"] = call(deployed, images)
    return timed(calls, SECONDS, task.device, settle=1)
