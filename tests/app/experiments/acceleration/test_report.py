"""The report of an acceleration: its tables, its notes and its page."""

import pytest
import torch

from wae.experiments.acceleration import report, report_files

VERSIONS = {"torch": "2.14", "openvino": "2026.1", "nncf": "3"}
MEASURED_IN = {"engine": "eager", "precision": "bfloat16"}  # the times for a target


def found(**more):
    side = {
        "engine": "winograd",
        "precision": "float32",
        "accuracy": 0.9,
        "seconds": 0.002,
        "eager seconds": 0.004,
        "multiply_adds": 4e9,
    }
    classes = [{"right": 9, "of": 10}, {"right": 5, "of": 10}, {"right": 0, "of": 0}]
    worse = [{"right": 8, "of": 10}, {"right": 6, "of": 10}, {"right": 0, "of": 0}]
    training = {
        "accuracy": 0.9,
        "size": 224,
        "seconds": 60.0,
        "mimic": 1.0,
        "mirrored": False,
        "optimizer": "adamw",
        "high body": "the high body has 1/4 of the channels",
    }
    return {
        "original": {
            "accuracy": 0.92,
            "multiply_adds": 4e9,
            "classes": classes,
            "labels": ["<a>", "b|c", "d"],
        },
        "training": training,
        "deployed": {
            "images": 1,
            "machine": {"processor": "i486", "threads": 1, "versions": VERSIONS},
            "others": None,
            "original": side,
            "accelerated": {**side, "seconds": 0.001, "multiply_adds": 1e9, "classes": worse},
        },
        "onnx": {"not written": "no ONNX Runtime"},
        **more,
    }


def test_the_classes_that_lost_accuracy_and_the_speed_are_reported():
    assert report.lost(found()) == [("<a>", 0.9, 0.8, 10)]
    text = report_files.markdown("net", found())
    assert "| \\<a> | 90.0 % | 80.0 % | 10 |" in text
    assert "4.0 times as fast as the original in PyTorch, 2.0 times as fast as the original in wino" in text
    assert "- The high body has 1/4 of the channels.\n" in text
    assert "There is no ONNX file: no ONNX Runtime." in text
    assert "does not pay" not in text
    slow = found()
    slow["deployed"]["accelerated"]["seconds"] = 0.003
    slow["deployed"]["accelerated"]["not saved"] = "cudagraphs on cuda cannot be saved"
    slow["training"]["high body"] = "the high body is a light CNN of 4 convolutions"  # its `reason`
    text = report_files.markdown("net", slow)
    assert "0.67 times as fast as the original in winograd, float32;" in text
    assert "top-1 accuracy 92.00 % to 90.00 %: WAE does not pay here." in text
    assert "- The high body is a light CNN of 4 convolutions.\n" in text
    assert "- There is no folder deployed: cudagraphs on cuda cannot be saved.\n" in text


def test_wae_does_not_pay_if_the_original_is_faster_in_pytorch_than_deployed():
    """Only the deployed form counted, and `--engine` may name an engine that is slower than PyTorch."""
    of = found()
    of["deployed"]["original"] = {**of["deployed"]["original"], "eager seconds": 0.0009}
    assert report.summary(of) == (
        "0.90 times as fast as the original in PyTorch, 2.0 times as fast as the original in winograd, "
        "float32; top-1 accuracy 92.00 % to 90.00 %: WAE does not pay here"
    )


def test_multiply_adds_are_compared_in_a_line():
    assert report.arithmetic(4 * 10**9, 10**9) == "multiply-adds: 4.000 G, accelerated 1.000 G"
    assert report.arithmetic(63 * 10**6, 65 * 10**6) == (
        "multiply-adds: 63.00 M, accelerated 65.00 M; around so light a network WAE saves none"
    )


@pytest.mark.parametrize(
    ("right", "of", "doubtful"),
    [
        ((5, 5), (10, 10), True),
        ((10, 4), (10, 10), True),  # 70 %, which guessing reaches on 20 images with a probability of 6 %
        ((10, 5), (10, 10), False),
        ((0, 88), (10, 90), True),  # it always names the same class
        ((9, 88), (10, 90), False),
        ((2, 2), (2, 2), False),  # every image is right
    ],
)
def test_an_original_that_only_guesses_is_doubted(right, of, doubtful):
    classes = [{"right": a, "of": b} for a, b in zip(right, of, strict=True)]
    measured = {**found()["original"], "accuracy": sum(right) / sum(of), "classes": classes, "labels": "ab"}
    said = report.doubt({"original": measured})
    assert bool(said) == doubtful
    assert ("check its weights, the order of its classes, --mean" in said) == doubtful


def test_the_report_advises_what_to_do_about_an_original_that_only_guesses():
    of = found(head={"epochs": 1})
    parts = {"image": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}
    for accuracy, times in ((0.55, 1), (0.92, 0)):
        of["original"]["accuracy"] = accuracy
        for text in (report_files.markdown("net", of), report_files.page("net", of, parts)):
            assert text.count("hardly better than guessing: 55.00 % of the test images are right") == times
            assert text.count("its new head needs more --epochs (and --force, to start over)") == times


def test_the_report_says_if_other_programs_ran_while_times_were_measured():
    of, parts = found(), {"image": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}
    curve = {"curve": [], "original": 1.0, "engine": "eager"}
    pruned = "baseline: pruned, Taylor"
    for deployed, target, pruning, busy in (
        (None, None, None, ""),
        (0.05, 0.0, 0.0, ""),
        (0.5, 0.0, 0.0, "0.5"),
        (0.0, 1.25, 0.0, "1.2"),
        (0.0, 0.0, 0.75, "0.8"),
    ):
        of["deployed"]["others"], of["times"] = deployed, {**curve, "others": target}
        of[pruned] = {"left out": "too slow", "others": pruning}
        said = f"other programs used {busy} cores meanwhile: do not rely on these times" if busy else ""
        assert report.disturbed(of) == said
        for text in (report_files.markdown("net", of), report_files.page("net", of, parts)):
            assert text.count("other programs used") == bool(busy)
            assert said in text


def test_classes_without_a_test_image_are_named():
    """Their files cannot be read, say. The accuracy is then that of the other classes."""
    of = found()
    assert "- No test image was read of d.\n" in report_files.markdown("net", of)
    of["original"]["classes"] = [{"right": 9, "of": 10}] * 3
    assert "No test image" not in report_files.markdown("net", of)
    of["original"]["classes"], of["original"]["labels"] = (
        [{"right": 0, "of": 0}] * 11 + [{"right": 1, "of": 1}],
        "abcdefghijkl",
    )
    of["deployed"]["accelerated"]["classes"] = of["original"]["classes"]
    assert "- No test image was read of a, b, c, d, e, f, g, h, i, j and others.\n" in report_files.markdown(
        "net", of
    )


@pytest.mark.parametrize(
    ("label", "written"),
    [
        ("<unknown> & <b>", "\\<unknown> \\& \\<b>"),
        ("a|b *c* `d`", "a\\|b \\*c\\* \\`d\\`"),
        ("[x](y) a\\b", "\\[x](y) a\\\\b"),
        ("__init__", "\\_\\_init\\_\\_"),
        ("golden_retriever, ü", "golden_retriever, ü"),
    ],
)
def test_markdown_shows_the_names_of_classes_as_they_are(label, written):
    """<unknown> would be a tag, which is not shown."""
    of = found()
    of["original"]["labels"] = [label, label, label]
    text = report_files.markdown("net", of)
    assert f"| {written} | 90.0 % | 80.0 % | 10 |" in text
    assert f"- No test image was read of {written}.\n" in text


def test_the_number_of_images_and_the_machine_are_reported():
    text = report_files.markdown("net", found())
    assert "- Accuracies: of 20 test images.\n" in text
    assert "interleaved calls on this machine: i486, 1 thread, torch 2.14, openvino 2026.1.\n" in text
    on_a_gpu = found()
    on_a_gpu["deployed"]["machine"]["gpu"] = "NVIDIA H200"
    assert "calls on this machine: NVIDIA H200, i486, 1 thread" in report_files.markdown("net", on_a_gpu)


def deployed_side(name, accuracy, seconds, eager, multiply_adds=0):
    return {
        "engine": name, "precision": "int8", "accuracy": accuracy, "seconds": seconds, "eager seconds": eager,
        "multiply_adds": multiply_adds,
    }  # fmt: skip


def test_every_row_has_the_numbers_of_its_side():
    """All of these numbers differ."""
    of = found(
        **{
            "baseline: half": {"accuracy": 0.5, "side": 112},
            "baseline: pruned": {"accuracy": 0.4, "ratio": 0.3},
        }
    )
    of["original"]["accuracy"], of["training"]["accuracy"] = 0.9, 0.8
    of["deployed"] |= {
        "original": deployed_side("a", 0.89, 0.004, 0.008, 4 * 10**9),
        "accelerated": deployed_side("b", 0.79, 0.001, 0.002, 10**9),
        "half": deployed_side("c", 0.49, 0.0005, 0.016, 2 * 10**9),
    }
    of["deployed"]["accelerated"]["classes"] = found()["deployed"]["accelerated"]["classes"]
    assert report.rows(of) == [
        ("original", "PyTorch", 0.9, 0.008, 4 * 10**9),
        ("original", "a, int8", 0.89, 0.004, 4 * 10**9),
        ("accelerated", "PyTorch", 0.8, 0.002, 10**9),
        ("accelerated", "b, int8", 0.79, 0.001, 10**9),
        ("half", "PyTorch", 0.5, 0.016, 2 * 10**9),
        ("half", "c, int8", 0.49, 0.0005, 2 * 10**9),
    ]
    text = report_files.markdown("net", of)
    assert "| top-1 accuracy | time of 1 image | faster |" in text
    assert "| original | PyTorch | 90.00 % | 8 ms | 1.0x | 4.000 G |" in text
    assert "| half | c, int8 | 49.00 % | 0.5 ms | 16.0x | 2.000 G |" in text
    assert "- half: sees images of 112 x 112." in text
    assert "- pruned: 30% of the channels were removed." in text
    distilled = "- Distilled from the original: the distance to {} is part of the loss."
    assert distilled.format("its scores") in text
    of["training"]["mirrored"] = True
    mean = "its scores, averaged over an image and its mirror image,"
    assert distilled.format(mean) in report_files.markdown("net", of)
    of["training"]["mimic"] = 0.0
    assert "- The original's scores are not part of the loss." in report_files.markdown("net", of)
    for allowed, outcome in ((1.0, "met"), (0.9, "missed"), (0.9999, "missed")):
        of["target"] = {"allowed": allowed / 1e3, "original": 0.004, "curve": [], **MEASURED_IN}
        wanted = (
            f"The deployed network {outcome} the target: 1 ms, the target is at most {allowed:g} ms; "
            "the original takes 4 ms in eager, bfloat16."
        )
        assert wanted in report_files.markdown("net", of)


def test_classes_are_sorted_by_the_accuracy_lost_on_the_images_read():
    of = found()
    of["original"]["labels"] = ["little", "much", "same", "more"]
    of["original"]["classes"] = [{"right": right, "of": 10} for right in (9, 8, 5, 5)]
    now = [(8, 10), (2, 8), (5, 10), (6, 10)]
    of["deployed"]["accelerated"]["classes"] = [{"right": right, "of": all_} for right, all_ in now]
    assert report.lost(of) == [("much", 0.8, 0.25, 10), ("little", 0.9, 0.8, 10)]


def test_the_page_escapes_and_shows_the_curve():
    curve = [
        {"size": 64, "factor": 4, "seconds": 0.5, "kept": 0.8},
        {"size": 96, "factor": 2, "seconds": 2.0},
    ]
    parts = {name: torch.zeros(1, 3, 4, 4, dtype=torch.uint8) for name in ("image", "low", "high")}
    target = {"curve": curve, "allowed": 1.0, "original": 2.0, **MEASURED_IN}
    page = report_files.page("<net>", found(target=target), parts)
    assert "<h1>&lt;net&gt;, accelerated</h1>" in page
    assert "<td>&lt;a&gt;</td>" in page
    assert "What was measured for the target, in eager, bfloat16" in page
    assert "<td>64</td><td>4</td><td>500 ms</td><td>4.00x</td><td>yes</td><td>80.00 %</td>" in page
    assert "<td>96</td><td>2</td><td>2000 ms</td><td>1.00x</td><td></td><td></td>" in page


def test_diverged_trials_and_the_optimizer_are_reported():
    curve = [{"size": 48, "factor": 4, "seconds": 0.5, "kept": None}]
    target = {"curve": curve, "original": 1, "allowed": 1, **MEASURED_IN}
    measured = found(**{"trial: mimic 1": None, "trial: mimic 1, sgd": 0.0}, target=target)
    measured["training"]["optimizer"] = "sgd"
    text = report_files.markdown("net", measured)
    assert "| mimic 1 | the loss was no longer finite |\n| mimic 1, sgd | 0.00 % |" in text
    assert "| yes | the loss was no longer finite |" in text
    assert "- The optimizer (of the last stage): sgd." in text
