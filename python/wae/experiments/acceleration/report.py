"""What the report of an acceleration says: its summary, tables, notes and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from wae.experiments.machine import disturbance
from wae.wording import amount, compared_milliseconds, counted, milliseconds, printable

LOST = 10
"""The most classes in the table of those that lost most."""


class Row(NamedTuple):
    """One way to run one of the networks."""

    name: str
    how: str
    accuracy: float
    """Share of the test images."""
    seconds: float
    """Of a call."""
    multiply_adds: int


def rows(found: Mapping[str, Any]) -> list[Row]:
    """The table of accuracy against time."""
    trained = {
        "original": found["original"],
        "accelerated": found["training"],
        **_entries(found, "baseline: "),
    }
    table = []
    for name, eager in trained.items():
        if deployed := found["deployed"].get(name):
            how, adds = f"{deployed['engine']}, {deployed['precision']}", deployed["multiply_adds"]
            table += [
                Row(name, "PyTorch", eager["accuracy"], deployed["eager seconds"], adds),
                Row(name, how, deployed["accuracy"], deployed["seconds"], adds),
            ]
    return table


def _entries(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The entries whose names begin with ``kind``, without it."""
    return {key.removeprefix(kind): value for key, value in found.items() if key.startswith(kind)}


def summary(found: Mapping[str, Any]) -> str:
    """The outcome in one line."""
    first, old, _, new = rows(found)[:4]
    fastest = min(first.seconds, old.seconds)  # the one engine that is allowed may be slower than PyTorch
    end = "" if new.seconds < fastest else ": WAE does not pay here"
    return (
        f"{_ratio(first.seconds / new.seconds)} times as fast as the original in PyTorch, "
        f"{_ratio(old.seconds / new.seconds)} times as fast as the original in {old.how}; top-1 accuracy "
        f"{100 * first.accuracy:.2f} % to {100 * new.accuracy:.2f} %{end}"
    )


def _ratio(ratio: float) -> str:
    """With one more digit below 1, because 0.96 would become 1.0."""
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def arithmetic(old: int, new: int) -> str:
    """The multiply-adds of the original and of the accelerated network, in one line."""
    costs = f"multiply-adds: {amount(old)}, accelerated {amount(new)}"
    return costs if new < old else f"{costs}; around so light a network WAE saves none"


def doubt(found: Mapping[str, Any]) -> str:
    """A warning that the original is hardly better than guessing, with advice; "" if it is better.

    Guessing means always naming the most frequent class; better means by more than two standard errors.
    """
    accuracy, of = found["original"]["accuracy"], [entry["of"] for entry in found["original"]["classes"]]
    guessed = max(of) / sum(of)
    if accuracy == 1 or accuracy > guessed + 2 * math.sqrt(guessed * (1 - guessed) / sum(of)):
        return ""
    to_do = "check its weights, the order of its classes, --mean, --std and --input-size"
    if "head" in found:
        to_do = "its new head needs more --epochs (and --force, to start over)"
    return (
        f"the original is hardly better than guessing: {100 * accuracy:.2f} % of the test images are right, "
        f"and the most frequent class is {100 * guessed:.2f} % of them; {to_do}"
    )


def disturbed(found: Mapping[str, Any]) -> str:
    """A warning if other programs used the machine while times were measured; "" if they did not."""
    steps = [found[step] for step in ("times", "deployed") if step in found]
    steps += _entries(found, "baseline: ").values()
    return disturbance(max(step.get("others") or 0.0 for step in steps))


def outcome(accuracy: float | None) -> str:
    """The outcome of a trial, as text."""
    return "the loss was no longer finite" if accuracy is None else f"{100 * accuracy:.2f} %"


def lost(found: Mapping[str, Any]) -> list[tuple[str, float, float, int]]:
    """Label, accuracy before and after, and number of test images of the classes that lost most."""
    labels, before = found["original"]["labels"], found["original"]["classes"]
    entries = [
        (label, old["right"] / old["of"], new["right"] / new["of"], old["of"])
        for label, old, new in zip(labels, before, found["deployed"]["accelerated"]["classes"], strict=True)
        if old["of"] and new["of"]
    ]
    return sorted((entry for entry in entries if entry[2] < entry[1]), key=lambda e: e[2] - e[1])[:LOST]


class Table(NamedTuple):
    """A table of strings."""

    title: str
    columns: list[str]
    cells: list[list[str]]


def tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """The tables that have rows. The first one always has."""
    every = _of_sides(name, found), _of_target(found), _of_trials(found), _of_lost(found)
    return [table for table in every if table.cells]


def _of_sides(name: str, found: Mapping[str, Any]) -> Table:
    table = rows(found)
    cells = [
        [
            row.name,
            row.how,
            f"{100 * row.accuracy:.2f} %",
            f"{milliseconds(row.seconds)} ms",
            f"{_ratio(table[0].seconds / row.seconds)}x",
            amount(row.multiply_adds),
        ]
        for row in table
    ]
    time = f"time of {counted(found['deployed']['images'], 'image')}"
    columns = ["network", "run by", "top-1 accuracy", time, "faster", "multiply-adds"]
    return Table(f"{name}: accuracy and time", columns, cells)


def _of_target(found: Mapping[str, Any]) -> Table:
    if "target" not in found:
        return Table("", [], [])
    target = found["target"]
    cells = [
        [
            str(entry["size"]),
            str(entry["factor"]),
            f"{milliseconds(entry['seconds'])} ms",
            f"{target['original'] / entry['seconds']:.2f}x",
            "yes" if entry["seconds"] <= target["allowed"] else "",
            outcome(entry["kept"]) if "kept" in entry else "",
        ]
        for entry in sorted(target["curve"], key=lambda entry: -entry["seconds"])
    ]
    columns = ["images of", "light body's factor", "time", "faster", "meets the target", "short trial"]
    return Table(f"What was measured for the target, in {_measured_in(target)}", columns, cells)


def _measured_in(target: Mapping[str, Any]) -> str:
    """The engine and the precision in which the times for the target were measured."""
    return f"{target['engine']}, {target['precision']}"


def _of_trials(found: Mapping[str, Any]) -> Table:
    cells = [[name, outcome(value)] for name, value in _entries(found, "trial: ").items()]
    columns = ["trial (mimic: weight of the distillation)", "top-1 accuracy"]
    return Table("Short trials, on held-out training images", columns, cells)


def _of_lost(found: Mapping[str, Any]) -> Table:
    cells = [
        [printable(label), f"{100 * old:.1f} %", f"{100 * new:.1f} %", str(of)]
        for label, old, new, of in lost(found)
    ]
    columns = ["class", "original", "accelerated", "images"]
    return Table("The classes that lost most accuracy", columns, cells)


def notes(found: Mapping[str, Any]) -> list[str]:
    """What the tables do not say, a sentence each."""
    training, new = found["training"], found["deployed"]["accelerated"]
    high = training["high body"]
    tested = sum(entry["of"] for entry in found["original"]["classes"])
    lines = [
        f"{high[:1].upper()}{high[1:]}.",
        f"Images of {training['size']} x {training['size']}; training took {training['seconds']:.0f} s.",
        _distillation(training),
        f"Accuracies: of {counted(tested, 'test image')}.",
        f"Times: medians of interleaved calls on {_where(found['deployed']['machine'])}.",
        f"The optimizer (of the last stage): {training['optimizer']}.",
    ]
    if "target" in found:
        target = found["target"]
        allowed = target["allowed"]
        outcome = "met" if new["seconds"] <= allowed else "missed"
        taken, most = compared_milliseconds(new["seconds"], allowed)
        times = (
            f"{taken} ms, the target is at most {most} ms; "
            f"the original takes {milliseconds(target['original'])} ms in {_measured_in(target)}"
        )
        lines.append(f"The deployed network {outcome} the target: {times}.")
    for name, baseline in _entries(found, "baseline: ").items():
        if "left out" in baseline:
            lines.append(f"{name} is left out: {baseline['left out']}.")
        elif "ratio" in baseline:
            lines.append(f"{name}: {baseline['ratio']:.0%} of the channels were removed.")
        else:
            lines.append(f"{name}: sees images of {baseline['side']} x {baseline['side']}.")
    original = found["original"]
    classes = zip(original["labels"], original["classes"], strict=True)
    if untested := [printable(label) for label, counts in classes if not counts["of"]]:
        others = " and others" if len(untested) > LOST else ""
        lines.append(f"No test image was read of {', '.join(untested[:LOST])}{others}.")
    if "not saved" in new:
        lines.append(f"There is no folder deployed: {new['not saved']}.")
    if "not written" in found["onnx"]:
        lines.append(f"There is no ONNX file: {found['onnx']['not written']}.")
    return lines


def _where(machine: Mapping[str, Any]) -> str:
    """The machine that the times were measured on: see :func:`wae.experiments.machine.machine`."""
    engines = "".join(
        f", {name} {machine['versions'][name]}"
        for name in ("torch", "onnxruntime", "openvino")
        if name in machine["versions"]
    )
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    return f"this machine: {gpu}{machine['processor']}, {counted(machine['threads'], 'thread')}{engines}"


def _distillation(training: Mapping[str, Any]) -> str:
    """How the network was distilled from the original."""
    if not training["mimic"]:
        return "The original's scores are not part of the loss."
    scores = "its scores"
    if training["mirrored"]:
        scores = "its scores, averaged over an image and its mirror image,"
    return f"Distilled from the original: the distance to {scores} is part of the loss."


def warnings(found: Mapping[str, Any]) -> list[str]:
    """The warnings of :func:`doubt` and :func:`disturbed`, if there are any."""
    return list(filter(None, (doubt(found), disturbed(found))))
