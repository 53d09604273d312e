"""wae.storage.checkpoint: what a classifier's checkpoint keeps and describes, and what is refused."""

import contextlib
import io
import json
import pickle
import subprocess
import sys

import pytest
import tiny_original
import torch
from default_dtype import with_default_dtype
from hypothesis import given
from hypothesis import strategies as st
from pickles import RunsCode
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_classifier import tiny

from wae.data.input import MAX_SIZE, evaluation_resize
from wae.experiments.answers import candidates
from wae.models import registry
from wae.models.accelerated import Form, accelerated
from wae.models.around import wae_around
from wae.models.classifier import WAEClassifier
from wae.storage import checkpoint, weights_file
from wae.storage.checkpoint import (
    Description,
    Input,
    describe,
    describe_classifier,
    load_classifier,
    save_classifier,
)
from wae.storage.weights_file import CheckpointError
from wae.training.original import open_original
from wae_kernels.nn import Decoder


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    monkeypatch.setitem(checkpoint._NETWORKS, "tiny", tiny)


def write(path, recipe, model=None):
    """Write a file with ``recipe``, text or an object, and the tensors of ``model``; return its path."""
    text = recipe if isinstance(recipe, str) else json.dumps(recipe)
    save_file((model or tiny()).state_dict(), path, {"recipe": text})
    return path


def recipe_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["recipe"])


# ----------------------------------------------------------------------------------------- saving and loading


def test_a_loaded_network_has_its_non_persistent_buffers_and_is_in_evaluation_mode(tmp_path, monkeypatch):
    def buffered(classes=3):
        model = tiny(classes).train()
        model.register_buffer("offset", torch.tensor([5.0]), persistent=False)
        return model

    monkeypatch.setitem(checkpoint._NETWORKS, "buffered", buffered)
    save_classifier(tmp_path / "c", buffered(), "buffered")
    loaded = load_classifier(tmp_path / "c")
    assert loaded.offset.tolist() == [5.0]
    assert not any(module.training for module in loaded.modules())


@pytest.mark.slow
def test_wae_that_is_made_for_its_images_is_loaded(tmp_path):
    """Its positions are for 32 x 32 pixels, not for 112 x 112."""
    pytest.importorskip("timm", reason="timm is not installed")
    model = registry.build("wae_vit_tiny_patch16_224", 3, size=(64, 64)).eval()
    save_classifier(tmp_path / "c", model, "wae_vit_tiny_patch16_224", input=Input(64, 73))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(load_classifier(tmp_path / "c")(image), model(image))


def test_a_path_may_be_a_string(tmp_path):
    path, model = str(tmp_path / "c"), tiny()
    save_classifier(path, model, "tiny")
    assert describe_classifier(path) == describe(path)
    assert load_classifier(path).state_dict().keys() == model.state_dict().keys()


def test_wae_around_a_custom_network_is_loaded_in_evaluation_mode(tmp_path):
    form = Form(tiny_original.SIDE)
    made = accelerated(tiny_original.build().eval(), form)
    save_classifier(tmp_path / "c", made, "tiny_original:build", form=form)
    loaded = load_classifier(tmp_path / "c", tiny_original.build().train())
    assert not any(module.training for module in loaded.modules())


def test_wae_around_a_custom_network_keeps_its_buffers_and_becomes_float32(tmp_path):
    def original():
        network = tiny_original.build().eval()
        network.register_buffer("mask", torch.tensor([True, False]))
        network.register_buffer("index", torch.tensor([1, 2], dtype=torch.int32))
        return network

    form = Form(tiny_original.SIDE)
    made = accelerated(original(), form)
    save_classifier(tmp_path / "c", made, "tiny_original:build", form=form)
    given = original().half()
    given.mask.fill_(False)
    loaded = load_classifier(tmp_path / "c", given).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.state_dict().items())
    assert {tensor.dtype for tensor in loaded.values()} == {
        torch.float32,
        torch.int64,
        torch.int32,
        torch.bool,
    }


@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "no decoder"])
def test_a_saved_classifier_is_loaded_unchanged(tmp_path, decoder):
    path, model, labels, made = tmp_path / "c", tiny(), ["cat", "Tee", "T-shirt/top é"], {"epochs": 3}
    model.decoder = Decoder() if decoder else None
    save_classifier(path, model, "tiny", labels, Input(28, 32, True), made)
    loaded, image = load_classifier(path), torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))
        if decoder:
            low, high = model.decompose(image)
            assert torch.equal(loaded.reconstruct(low, high, (9, 8)), model.reconstruct(low, high, (9, 8)))
    assert not loaded.training
    assert (loaded.decoder is not None) == decoder
    assert describe(path) == Description("tiny", 3, tuple(labels), Input(28, 32, True))
    assert recipe_of(path) == {
        "epochs": 3,
        "architecture": {"network": "tiny", "classes": 3},
        "labels": labels,
        "input": {
            "size": 28,
            "resize": 32,
            "grayscale": True,
            "interpolation": "bilinear",
            "squash": False,
        },
    }


@pytest.mark.parametrize(
    "label",
    [
        "no-break\u00a0space",
        "全角\u3000空白",
        "tab\tand\nline",
        "\x1b[2J",
        "x" * 255,
        "図" * 85,
        "\U0001f600",
    ],
    ids=ascii,
)
def test_a_label_may_be_any_folder_name(tmp_path, label):
    (tmp_path / label).mkdir()  # the name is valid
    save_classifier(tmp_path / "c", tiny(), "tiny", ["a", label, "c"])
    assert describe(tmp_path / "c").labels == ("a", label, "c")


@pytest.mark.parametrize("size", [900, 1024, MAX_SIZE])
def test_an_input_may_be_as_large_as_in_training(tmp_path, size):
    made = Input(size, evaluation_resize(size))
    save_classifier(tmp_path / "c", tiny(), "tiny", input=made)
    assert describe(tmp_path / "c").input == made


def test_a_recipe_that_is_too_long_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="recipe must have at most 4194304 characters"):
        save_classifier(tmp_path / "c", tiny(), "tiny", made={"epochs": "x" * (1 << 22)})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_labels_and_input_has_imagenet_s_input(tmp_path):
    path = write(tmp_path / "c", {"architecture": {"network": "tiny", "classes": 3}})
    assert describe(path) == Description("tiny", 3, None, Input(size=224, resize=256, grayscale=False))
    assert isinstance(load_classifier(path), WAEClassifier)


def test_networks_are_registered_by_the_names_of_their_functions():
    for name, build in checkpoint._NETWORKS.items():
        assert name == build.__name__


def test_an_error_about_a_network_that_cannot_be_built_here_names_the_file(tmp_path, monkeypatch):
    def too_new(classes):
        raise ValueError("it needs a newer library")

    path = write(tmp_path / "c", {"architecture": {"network": "too_new", "classes": 3}})
    monkeypatch.setitem(checkpoint._NETWORKS, "too_new", too_new)
    with pytest.raises(CheckpointError, match=f"^{path}: too_new cannot be built: it needs a newer library$"):
        load_classifier(path)


def test_a_resnet50_checkpoint_is_compared_with_the_shapes_of_the_model(tmp_path):
    described = Description("wae_resnet50", 3)
    with torch.device("meta"):
        model = wae_around("resnet50", classes=3)
    assert checkpoint._shapes(checkpoint._without_memory(described, False)) == checkpoint._shapes(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_dtypes_become_float32(tmp_path, dtype):
    recipe = {"architecture": {"network": "tiny", "classes": 3}}
    loaded = load_classifier(write(tmp_path / "c", recipe, tiny().to(dtype)))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_network_is_loaded_in_float32_whatever_torch_s_default_dtype_is(tmp_path, monkeypatch):
    """Also the buffers that its constructor computes."""

    def buffered(classes=3):
        model = tiny(classes)
        model.register_buffer("offset", torch.ones(1) / 3, persistent=False)
        return model

    monkeypatch.setitem(checkpoint._NETWORKS, "buffered", buffered)
    model = buffered().eval()
    save_classifier(tmp_path / "c", model, "buffered")
    with with_default_dtype(torch.bfloat16):
        loaded = load_classifier(tmp_path / "c")
        assert torch.get_default_dtype() == torch.bfloat16
    assert torch.equal(loaded.offset, model.offset)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_shared_layer_is_saved_under_both_names(tmp_path):
    def network():
        layer = torch.nn.Linear(2, 2)
        return torch.nn.Sequential(layer, torch.nn.ReLU(), layer)

    saved, loaded, path = network(), network(), tmp_path / "w"
    weights_file.save(path, saved, {}, torch.optim.Adam(saved.parameters()))
    weights_file.load(path, loaded)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded[0] is loaded[2]


def test_the_longest_recipe_is_read_back_and_a_longer_one_is_not_written(tmp_path):
    model, path = torch.nn.Linear(1, 1), tmp_path / "w"
    around = len(json.dumps({"": ""}, indent=1))
    recipe = {"": "x" * (weights_file.MAX_RECIPE - around)}
    weights_file.save(path, model, recipe)
    assert weights_file.load(path, model) == recipe
    with pytest.raises(
        ValueError, match="at most 4194304 characters as JSON, with all class names, got 4194305"
    ):
        weights_file.save(tmp_path / "other", model, {"": recipe[""] + "x"})
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_replaced_without_force(tmp_path):
    path = tmp_path / "c"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="--force"):
        save_classifier(path, tiny(), "tiny")
    assert path.read_bytes() == b"precious"
    save_classifier(path, tiny(), "tiny", force=True)
    assert describe(path).network == "tiny"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "vgg99"}, "network must be one of wae_vgg16, .*, got 'vgg99'"),
        ({"network": "wae_vgg16"}, "model must be a wae_vgg16 with 3 classes, got other parameters"),
        ({"labels": ["a", "b"]}, "labels must be 3, one for each class, got 2"),
        ({"labels": ["a", "b", "c\udcff"]}, "labels must be texts of 1 to 1000 characters, got .c"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_checkpoint_that_could_not_be_loaded_is_not_saved(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        save_classifier(tmp_path / "c", tiny(), **{"network": "tiny", **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["low_body.0.weight", "high_norm.running_var"])
def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, name, value):
    model = tiny()
    model.state_dict()[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=f"finite numbers only, but {name} has some"):
        save_classifier(tmp_path / "c", model, "tiny")
    with pytest.raises(CheckpointError, match=f"c: {name} has numbers that are not finite"):
        load_classifier(write(tmp_path / "c", architecture(), model))


def test_numbers_that_overflow_in_float32_are_refused(tmp_path):
    model = tiny().double().requires_grad_(False)
    model.low_body[0].bias.fill_(1e39)
    with pytest.raises(CheckpointError, match=r"c: low_body\.0\.bias has numbers that are not finite"):
        load_classifier(write(tmp_path / "c", architecture(), model))


def test_a_tensor_without_numbers_is_finite(tmp_path):
    layer = torch.nn.Module()
    layer.register_buffer("none", torch.zeros(0))
    weights_file.save(tmp_path / "w", layer, {})
    weights_file.load(tmp_path / "w", layer)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"size": 0}, "size must be an integer from 1 to 2048, got 0"),
        ({"size": 2.0}, "size must be an integer"),
        ({"size": True}, "size must be an integer"),
        ({"size": 10**12, "resize": 10**12}, "size must be an integer"),
        ({"size": 28, "resize": 27}, "resize must be an integer from 28 to 4096, got 27"),
        ({"resize": "256"}, "resize must be an integer"),
        ({"grayscale": 1}, "grayscale must be true or false, got 1"),
    ],
    ids=str,
)
def test_invalid_inputs_are_refused(entries, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Input(**entries)
    recipe = {"architecture": {"network": "tiny", "classes": 3}, "input": entries}
    with pytest.raises(CheckpointError, match=f"c: its {message}"):
        describe(write(tmp_path / "c", recipe))


# ------------------------------------------------------------------------------------------- hostile files


def architecture(network="tiny", classes=3):
    return {"architecture": {"network": network, "classes": classes}}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "no checkpoint of a network: its recipe has no 'architecture'"),
        ({"architecture": {"network": "tiny"}}, "no checkpoint of a network: its recipe has no 'classes'"),
        ({"architecture": [1]}, r"its architecture must be a JSON object, got \[1\]"),
        ([], r"its recipe must be a JSON object, got \[\]"),
        ("{", "its recipe is no JSON "),
        ("[" * 100_000, "its recipe is nested too deeply"),
        ("9" * 5_000, "its "),
        (" " * (1 << 22) + "{}", "its recipe must have at most 4194304 characters, got 4194306"),
        (architecture(["tiny"]), r"network must be one of wae_vgg16, .*, got \['tiny'\]"),
        (architecture(None), "network must be one of .*, got None"),
        (architecture("os:getcwd"), "network must be one of .*, got 'os:getcwd'"),
        (architecture(classes=0), "number of classes must be 1 or more, got 0"),
        (architecture(classes=-1), "number of classes must be 1 or more, got -1"),
        (architecture(classes="3"), "number of classes must be 1 or more, got '3'"),
        (architecture(classes=True), "number of classes must be 1 or more, got True"),
        (architecture(classes=1e400), "number of classes must be 1 or more, got inf"),
        (architecture(classes=2**40), "number of classes must be 1 or more"),
        (architecture(classes=2**31 - 1), "its tensors are not those of tiny with 2,147,483,647 classes"),
        (architecture("wae_vgg16", 2**31 - 1), "its tensors are not those of wae_vgg16 with 2,147,483,647"),
        (architecture(classes=4), "its tensors are not those of tiny with 4 classes"),
        ({**architecture(), "labels": "abc"}, "its labels must be a list, got 'abc'"),
        ({**architecture(), "labels": ["a", "b"]}, "its labels must be 3, one for each class, got 2"),
        (
            {**architecture(), "labels": ["a", "b", "c", "d"]},
            "its labels must be 3, one for each class, got 4",
        ),
        ({**architecture(), "labels": ["a", "b", 3]}, "its labels must be texts of .*, got 3"),
        ({**architecture(), "labels": ["a", "b", ""]}, "its labels must be texts of"),
        ({**architecture(), "labels": ["a", "b", "\ud800"]}, "its labels must be texts of"),
        ({**architecture(), "labels": ["a", "b", "c" * 1001]}, "its labels must be texts of"),
        ({**architecture(), "input": [28]}, r"its input must be a JSON object, got \[28\]"),
        ({**architecture(), "input": {"mean": 3}}, "its input has an entry that is not known: 'mean'"),
    ],
    ids=lambda value: f"{value!s:.40}",
)
def test_invalid_recipes_are_refused(tmp_path, recipe, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_classifier(write(tmp_path / "c", recipe))
    assert len(str(caught.value)) < 400


def torch_file():
    stream = io.BytesIO()
    torch.save(RunsCode(), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "this is not a checkpoint"),
        (b"junk", "this is not a checkpoint"),
        (b"\xff" * 64, "this is not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"<!doctype html>", "it is a web page"),
        (torch_file(), "it is a pickle, which can run code and is never read"),
        *(
            (pickle.dumps(RunsCode(), n), "it is a pickle, which can run code and is never read")
            for n in range(2, 6)
        ),
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "bytes",
        "LFS",
        "HTML",
        "torch.save",
        *(f"pickle {n}" for n in range(2, 6)),
    ],
)
def test_other_file_types_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "c").write_bytes(content)
    for read in (load_classifier, describe):
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / "c")


@pytest.mark.parametrize(
    "use", [describe_classifier, candidates, lambda path: open_original(str(path), None, 3)]
)
def test_functions_for_classifiers_refuse_segmentation_networks(tmp_path, use):
    """They could be loaded, and their scores mistaken for those of an image."""
    path = tmp_path / "enet.safetensors"
    save_classifier(path, registry.build("enet", 3), "enet")
    with pytest.raises(
        CheckpointError, match=r"enet.safetensors: enet scores pixels; a classifier is needed"
    ):
        use(path)


@pytest.mark.parametrize("rest", [{"optimizer": True}, {"record": b"{}\n"}], ids=["optimizer", "record"])
def test_what_a_training_resumes_from_is_named_as_such(tmp_path, rest):
    model, path = tiny(), tmp_path / "state.safetensors"
    if "optimizer" in rest:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        rest = {"optimizer": optimizer}
    weights_file.save(path, model, {"plan": {}}, **rest)
    with pytest.raises(
        CheckpointError, match="it is what a training resumes from, and not the trained network"
    ):
        describe(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="this is a folder"):
        load_classifier(tmp_path)


def test_missing_and_unexpected_tensors_are_refused(tmp_path):
    state = tiny().state_dict()
    for name, changed, message in (
        (
            "missing",
            {k: v for k, v in state.items() if k != "low_body.0.weight"},
            "its tensors are not those",
        ),
        ("more", {**state, "more": torch.zeros(1)}, "its tensors are not those"),
        ("shape", {**state, "low_body.0.bias": torch.zeros(5)}, "its tensors are not those"),
        (
            "numbers",
            {**state, "low_body.0.bias": state["low_body.0.bias"].long()},
            "low_body.0.bias is of torch.int64, not torch.float32",
        ),
        ("dtype", {k: v.to(torch.complex64) for k, v in state.items()}, "must be of BF16, .*, got C64"),
        ("half a decoder", {**state, "decoder.low.weight": torch.zeros(1)}, "its tensors are not those"),
    ):
        save_file(changed, tmp_path / name, {"recipe": json.dumps(architecture())})
        with pytest.raises(CheckpointError, match=message):
            load_classifier(tmp_path / name)


def test_at_most_three_wrong_tensors_are_named(tmp_path):
    weights_file.save(tmp_path / "w", torch.nn.Sequential(), {})
    for layers, message in (
        (1, "0.weight is missing, 0.bias is missing"),
        (2, r"1.weight is missing \(and 1 more\)"),
    ):
        network = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(layers)))
        with pytest.raises(CheckpointError, match=f"{message}$"):
            weights_file.load(tmp_path / "w", network)


@pytest.mark.parametrize("kind", ["F6_E2M3", "F6_E3M2"])
def test_dtypes_that_torch_lacks_are_refused(tmp_path, kind):
    """safetensors accepts them in a header."""
    header = {"weight": {"dtype": kind, "shape": [2, 2], "data_offsets": [0, 3]}}
    text = json.dumps(header).encode()
    (tmp_path / "c").write_bytes(len(text).to_bytes(8, "little") + text + bytes(3))
    with pytest.raises(CheckpointError, match=f"c: its tensors cannot be read .*{kind}"):
        weights_file.load(tmp_path / "c", torch.nn.Linear(2, 2))


def test_a_checkpoint_of_the_auto_encoder_is_refused():
    with pytest.raises(CheckpointError, match="its recipe has no 'architecture'"):
        load_classifier(weights_file.WEIGHTS / "autoencoder.safetensors")


@given(st.data())
def test_damaged_files_load_or_raise_checkpoint_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "c"
    write(path, architecture())
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, header]))])
    with contextlib.suppress(CheckpointError):  # some damage leaves a good file
        load_classifier(path)


MEASURED = """
import resource, sys
from pathlib import Path
from wae.storage import checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    try:
        checkpoint.load_classifier(path)
    except checkpoint.CheckpointError as error:
        print(str(error)[:150])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_refusing_a_file_takes_little_memory(tmp_path):
    """The files announce networks of gigabytes."""
    paths = [
        write(tmp_path / "a", architecture("wae_vgg16", 2**31 - 1)),
        write(tmp_path / "b", architecture("wae_resnet50", 2**31 - 1)),
        write(tmp_path / "c", "[" * (4 << 20)),
    ]
    command = [sys.executable, "-c", MEASURED, *map(str, paths)]
    *refused, kibibytes = subprocess.check_output(command, text=True).splitlines()
    assert len(refused) == len(paths)
    assert int(kibibytes) < 100_000
