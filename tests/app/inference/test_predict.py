"""`wae predict`: how images are prepared, the predictions, and the output of the command."""

import contextlib
import itertools
import json
import os
import pty
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_classifier import tiny
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

from wae import cli
from wae.data.images import ImageError, read_image
from wae.data.walk import Found, find
from wae.inference import predict, reading
from wae.inference.predict import Prediction, prepare
from wae.models.classifier import FlatClassifier, WAEClassifier
from wae.storage import checkpoint
from wae.storage.checkpoint import Input
from wae_kernels.nn import Encoder

SMALL = Input(16, 20)
LABELS = ["cat", "T-shirt/top", "owl"]


def save_image(path, size=(24, 30), grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if grey else (*size, 3)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of images and other files."""
    folder = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "sub/d.webp", "sub/deeper/e.bmp", "z.gif", ".hidden.png", ".cache/f.png"):
        save_image(folder / name, grey=name == "z.gif")
    save_image(folder / "c.tif")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


GOOD = ["a.JPG", "b.png", "c.tif", "z.gif", "sub/d.webp", "sub/deeper/e.bmp"]
ALL = ["a.JPG", "b.png", "broken.png", "c.tif", "z.gif", "sub/d.webp", "sub/deeper/e.bmp"]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setitem(checkpoint._NETWORKS, "tiny", tiny)
    path = tmp_path / "weights.safetensors"
    checkpoint.save_classifier(path, tiny(), "tiny", LABELS, SMALL)
    return path


def run(*arguments):
    return cli.main(["predict", *map(str, arguments)])


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


# --------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (24, 24), (1, 1), (1, 100), (101, 7)], ids=str)
def test_an_image_is_resized_and_centre_cropped(size):
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8).permute(2, 0, 1)
    made = prepare(image, Input(28, 32))
    assert made.dtype == torch.uint8
    assert torch.equal(made, v2.Compose([v2.Resize(32), v2.CenterCrop(28)])(image))


def test_scaling_down_is_antialiased():
    """A chessboard of single pixels becomes uniform grey."""
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    board = ((x + y) % 2 * 255).to(torch.uint8).expand(3, -1, -1)
    assert (prepare(board, Input(8, 8)).int() - 127).abs().max() <= 2


@pytest.mark.parametrize("grayscale", [False, True])
def test_a_grey_image_of_the_right_size_keeps_its_pixels(tmp_path, grayscale):
    grey = torch.arange(28 * 28).view(28, 28).remainder(256).to(torch.uint8)
    Image.fromarray(grey.numpy()).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    made = prepare(image, Input(28, 28, grayscale))
    assert torch.equal(made, grey.expand(3, -1, -1))
    assert torch.equal(prepare(image, Input(28, 28, grayscale), invert=True), 255 - made)


def test_grayscale_is_pillows_luma():
    image = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8)
    expected = torch.from_numpy(np.array(Image.fromarray(image.numpy()).convert("L"))).int()
    made = prepare(image.permute(2, 0, 1), Input(40, 40, grayscale=True)).int()
    assert (made - expected).abs().max() <= 1


def test_a_very_elongated_image_is_refused():
    with pytest.raises(
        ImageError, match=r"need one side at most 100 times as long as the other, got .* pixels"
    ):
        prepare(torch.zeros(3, 10, 1001, dtype=torch.uint8), Input())


# -------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_predictions_are_the_networks_in_order(photos, batch):
    model = tiny()
    network = predict.runner(model, SMALL)
    made = list(predict.predict(network, find([photos]), SMALL, top=2, batch=batch))
    assert [str(p.path.relative_to(photos)) for p in made] == ALL
    assert [p.path.name for p in made if p.error] == ["broken.png"]
    for prediction in made:
        if prediction.error:
            assert prediction == Prediction(photos / "broken.png", (), prediction.error)
            assert "photos" not in prediction.error
            continue
        image = prepare(read_image(prediction.path), SMALL)[None]
        with torch.no_grad():
            expected = model.cpu()(image)[0].double().softmax(0)
        highest = expected.argsort(descending=True)[:2].tolist()
        assert [number for number, _ in prediction.ranking] == highest
        for number, probability in prediction.ranking:
            assert probability == pytest.approx(expected[number].item(), abs=1e-4)


def test_the_network_gets_full_batches_of_uint8(photos):
    seen = []

    def network(images):
        seen.append((images.dtype, tuple(images.shape)))
        return torch.zeros(len(images), 7)

    found = [Found(photos / name) for name in GOOD]
    made = list(predict.predict(network, found, SMALL, top=100, batch=2))
    assert seen == [(torch.uint8, (n, 3, 16, 16)) for n in (2, 2, 2)]
    assert all(len(prediction.ranking) == 7 for prediction in made)


def test_scores_that_are_not_finite_are_an_error(photos):
    def network(images):
        scores = torch.zeros(len(images), 3)
        scores[1] = torch.nan
        scores[2] = torch.inf
        return scores

    found = [Found(photos / name) for name in GOOD]
    made = list(predict.predict(network, found, SMALL))
    assert [bool(prediction.error) for prediction in made] == [False, True, True, False, False, False]
    assert "not finite" in made[1].error


def test_files_are_read_only_a_little_ahead(photos):
    """Even of an endless stream: memory does not depend on the number of files."""
    taken = 0

    def endless():
        nonlocal taken
        for taken in itertools.count(1):  # noqa: B007
            yield Found(photos / "b.png")

    threads = threading.active_count()
    made = predict.predict(lambda images: torch.zeros(len(images), 3), endless(), SMALL, batch=4)
    for given in range(1, 41):
        next(made)
        assert taken <= given + 2 * 4 + reading.WORKERS + 1
    made.close()
    assert threading.active_count() == threads
    stopped = taken
    assert next(made, None) is None
    assert taken == stopped


def test_a_network_that_does_not_accept_the_size_is_refused():
    bodies = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 1, 1)
    model = WAEClassifier(Encoder(), *bodies, FlatClassifier(2 * 64, 4, 3), FlatClassifier(3 * 64, 4, 3))
    predict.runner(model.eval(), Input(16, 16))
    with pytest.raises(ValueError, match=r"the network takes no images of 20 x 20: .*128 features"):
        predict.runner(model, Input(20, 20))
    with pytest.raises(ValueError, match=r"the network takes no images of 20 x 20: Wrong image height"):
        predict.runner(VisionTransformer(32, 16, 1, 2, 64, 64).eval(), Input(20, 20))


def test_an_engine_gets_full_batches_only(monkeypatch):
    seen, model = [], tiny()

    def deploy(model, size, batch, engine):
        seen.append((size, batch, engine))
        return lambda images: (seen.append(tuple(images.shape)), model(images).detach())[1]

    monkeypatch.setattr("wae.inference.deploy.deploy", deploy)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    network = predict.runner(model, SMALL, "openvino", batch=4)
    for some in images.split(4):
        assert torch.allclose(network(some).cpu(), predict.runner(model, SMALL)(some).cpu(), atol=1e-5)
    assert seen == [((16, 16), 4, "openvino"), (4, 3, 16, 16), (4, 3, 16, 16)]


# ----------------------------------------------------------------------------------------------- the command


def test_json_lines_and_exit_status(photos, weights, capsys):
    assert run(photos, "--weights", weights, "--top", 2) == 1
    printed = capsys.readouterr()
    entries = lines(printed.out)
    assert [Path(entry["path"]) for entry in entries] == [photos / name for name in ALL]
    assert printed.err.startswith(f"wae: {photos / 'broken.png'}: this is not an image")
    assert printed.err.endswith("wae: left out: 2 hidden, 1 of other types (.txt)\n")
    assert printed.err.count("\n") == 2
    for entry in entries:
        if "error" in entry:
            assert entry["path"].endswith("broken.png")
            assert list(entry) == ["path", "error"]
            continue
        first, second = entry["classes"]
        assert first["probability"] >= second["probability"]
        assert [c["label"] for c in (first, second)] == [LABELS[c["class"]] for c in (first, second)]
    assert run(photos / "sub", "--weights", weights) == 0


def test_table_format(photos, weights, capsys):
    assert run(photos / "b.png", "--weights", weights) == 0
    classes = lines(capsys.readouterr().out)[0]["classes"]
    assert run(photos / "b.png", photos / "broken.png", "--weights", weights, "--format", "table") == 1
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "probability  class        image"
    names = [f"  {photos / 'b.png'}", "", ""]
    assert rows == [
        f"{100 * c['probability']:9.1f} %  {c['label']:<11}{name}".rstrip()
        for c, name in zip(classes, names, strict=True)
    ]


def test_without_labels_the_class_numbers_are_printed(photos, weights, capsys):
    checkpoint.save_classifier(weights, tiny(), "tiny", input=SMALL, force=True)
    assert run(photos / "b.png", "--weights", weights, "--top", 1) == 0
    (best,) = lines(capsys.readouterr().out)[0]["classes"]
    assert list(best) == ["class", "probability"]
    assert run(photos / "b.png", "--weights", weights, "--top", 1, "--format", "table") == 0
    assert f" {best['class']} " in capsys.readouterr().out.splitlines()[1]


def test_an_engine_predicts_the_same(photos, weights, capsys):
    assert run(photos / "sub", "--weights", weights) == 0
    assert run(photos / "sub", "--weights", weights, "--engine", "eager") == 0
    classes = [c for entry in lines(capsys.readouterr().out) for c in entry["classes"]]
    plain, deployed = classes[: len(classes) // 2], classes[len(classes) // 2 :]
    assert [c["class"] for c in deployed] == [c["class"] for c in plain]
    assert [c["probability"] for c in deployed] == pytest.approx([c["probability"] for c in plain], abs=1e-4)


def test_invert_inverts_what_the_network_sees(photos, weights, capsys):
    with Image.open(photos / "b.png") as image:
        Image.fromarray(255 - np.asarray(image)).save(photos / "inverted.png")
    assert run(photos / "b.png", "--weights", weights, "--invert") == 0
    assert run(photos / "inverted.png", "--weights", weights) == 0
    inverted, plain = (entry["classes"] for entry in lines(capsys.readouterr().out))
    assert [c["class"] for c in inverted] == [c["class"] for c in plain]
    assert [c["probability"] for c in inverted] == pytest.approx([c["probability"] for c in plain], abs=0.02)


def test_output_file(photos, weights, tmp_path, capsys):
    output = tmp_path / "out" / "predictions.jsonl"
    arguments = (photos, "--weights", weights, "-o", output)
    assert run(*arguments) == 1
    assert [Path(entry["path"]) for entry in lines(output.read_text())] == [photos / name for name in ALL]
    assert capsys.readouterr().out == ""
    before = output.read_bytes()
    assert run(*arguments, "--batch", 2) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert run(*arguments, "--force", "--format", "table") == 1
    assert output.read_text().startswith("probability  class")
    assert os.listdir(output.parent) == [output.name]


def test_an_input_is_never_overwritten(photos, weights, capsys):
    def contents():
        return {path: path.read_bytes() for path in (*photos.rglob("*"), weights) if path.is_file()}

    before = contents()
    for output, status in (("b.png", 2), ("new.PNG", 2), ("notes.txt", 1), (weights, 1)):
        sources = (photos, photos / "notes.txt")
        assert run(*sources, "--weights", weights, "-o", photos / output, "--force") == status
    assert "is the input" in capsys.readouterr().err
    assert contents() == before


def test_ctrl_c_leaves_no_partial_file(photos, weights, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        calls = itertools.count()

        def network(images):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return torch.zeros(len(images), 3)

        return network

    monkeypatch.setattr(predict, "runner", interrupted)
    threads = threading.active_count()
    (tmp_path / "out").mkdir()
    assert run(photos, "--weights", weights, "--batch", 1, "-o", tmp_path / "out" / "o") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "wae: interrupted"
    assert not os.listdir(tmp_path / "out")
    assert threading.active_count() == threads


def test_finding_no_images_is_an_error(tmp_path, weights, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--weights", weights, "-o", tmp_path / "o") == 1
    assert capsys.readouterr().err == f"wae: no images found in {tmp_path / 'empty'}\n"
    assert not (tmp_path / "o").exists()


def test_a_missing_file_does_not_lose_the_others(photos, weights, capsys):
    assert run(photos / "missing.png", photos / "b.png", "--weights", weights) == 1
    printed = capsys.readouterr()
    missing, found = lines(printed.out)
    assert missing["error"] == "there is no such file"
    assert found["classes"]
    assert "missing.png: there is no such file" in printed.err


def test_max_pixels(photos, weights, capsys):
    arguments = (photos / "b.png", "--weights", weights, "--max-pixels")
    assert run(*arguments, 24 * 30) == 0
    capsys.readouterr()
    assert run(*arguments, 24 * 30 - 1) == 1
    assert lines(capsys.readouterr().out)[0]["error"] == "24 x 30 pixels exceed the limit of 719"


def test_unusable_weights_are_named(photos, tmp_path, capsys):
    (tmp_path / "w").write_bytes(b"nothing")
    assert run(photos, "--weights", tmp_path / "w") == 1
    assert capsys.readouterr().err.startswith(f"wae: {tmp_path / 'w'}: this is not a checkpoint")


@pytest.mark.parametrize("wrong", [["--top", "0"], ["--batch", "-1"], ["--format", "xml"], []], ids=str)
def test_wrong_usage_is_refused(wrong, photos):
    with pytest.raises(SystemExit) as caught:
        run(*([photos] if wrong else []), *wrong)
    assert caught.value.code == 2


@pytest.mark.parametrize("name", [b"\x1b[2J.png", b"new\nline.png", b"\xff\xfe.png"], ids=str)
def test_no_file_name_reaches_the_terminal_raw(tmp_path, weights, name, capfd):
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    try:
        path.write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes no such name")
    good = path.with_name(path.name.replace(".png", "-.png"))
    Image.new("RGB", (9, 9)).save(good, format="png")
    assert run(tmp_path, "--weights", weights, "--format", "table") == 1
    printed = capfd.readouterr()
    assert all(c.isprintable() or c == "\n" for c in printed.out + printed.err)
    assert printed.err.endswith("left out: 1 of other types (.safetensors)\n")
    assert printed.err.count("\n") == 2
    assert printed.out.count("\n") == 4
    assert run(tmp_path, "--weights", weights) == 1
    assert [entry["path"] for entry in lines(capfd.readouterr().out)] == [str(good), str(path)]


def shown_on_a_terminal(monkeypatch, streams, *arguments):
    """Run the command with ``streams`` of sys on a terminal; its exit status, and what it writes there."""
    ours, theirs = pty.openpty()
    shown = []

    def read():
        with contextlib.suppress(OSError):  # which on Linux means that the other side is closed
            while chunk := os.read(ours, 1 << 16):
                shown.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", "300")
        for stream in streams:
            patched.setattr(sys, stream, terminal)
        status = run(*arguments)
    reader.join()
    os.close(ours)
    return status, b"".join(shown).decode()


def test_on_a_terminal_the_bar_is_on_stderr_alone(photos, weights, monkeypatch, capsys):
    status, shown = shown_on_a_terminal(monkeypatch, ["stderr"], photos, "--weights", weights)
    assert status == 1
    entries = lines(capsys.readouterr().out)
    assert [Path(entry["path"]) for entry in entries] == [photos / name for name in ALL]
    assert "preparing the network" in shown  # which takes some engines minutes
    assert "0/7" in shown
    assert "broken.png" in shown


def test_on_a_terminal_the_table_is_printed_above_the_bar(photos, weights, monkeypatch):
    arguments = photos / "b.png", "--weights", weights
    status, shown = shown_on_a_terminal(monkeypatch, ["stdout", "stderr"], *arguments)
    assert status == 0
    assert "0/1" in shown
    rows = [line for line in shown.splitlines() if " %  " in line]
    assert len(rows) == 3
    assert rows[0].endswith(str(photos / "b.png"))


def test_a_closed_pipe_ends_the_command_quietly(photos, weights, monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run(photos / "b.png", "--weights", weights) == 1
    assert capfd.readouterr() == ("", "")
