"""wae.storage.caffe: the importer of the published Caffe net, its scores, and what it refuses."""

import hashlib
import json
import os
import time
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caffe_files import DATA, blob, caffemodel, delimited, integer, layer, prototxt, varint
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from wae.models.classifier import FlatClassifier, WAEClassifier
from wae.models.vgg16 import vgg16_body, wae_vgg16
from wae.storage import caffe, checkpoint
from wae.storage.caffe import CaffeError
from wae_kernels.nn import Encoder

VGG16 = [(64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3]


def thin_vgg16(classes=5):
    """WAE-VGG16 with all layers but few channels."""
    features, both = 32 * 16, 40 * 16
    return WAEClassifier(
        Encoder(4),
        vgg16_body(16),
        vgg16_body(64),
        FlatClassifier(features, 8, classes),
        FlatClassifier(both, 9, classes),
    )


def one_block():
    """One convolution in each body, for images of 8 x 8: a file of 3 KB."""

    def body(channels):
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True)
        )

    return WAEClassifier(Encoder(4), body(2), body(1), FlatClassifier(8, 3, 3), FlatClassifier(12, 4, 3))


def shapes_of(low, high, features, hidden, classes, trunk):
    """The shapes of a net's blobs by Caffe's names, derived independently of our models."""
    shapes, channels = {}, 3

    def add(name, *shape):
        shapes[name] = [shape, shape[:1]]
        return shape[0]

    for number in (1, 2, 3):
        channels = add(f"decom_conv{number}", trunk, channels, 3, 3)
    for branch, blocks in (("CA", low), ("CH", high)):
        add(f"decom_conv_{branch}", 3, trunk, 3, 3)
        shapes[f"bn_{branch}"] = [(3,), (3,), (1,)]
        channels = 3
        for block, widths in enumerate(blocks, 1):
            for number, width in enumerate(widths, 1):
                channels = add(f"conv{block}_{number}_{branch}", width, channels, 3, 3)
    for end, inputs, width in zip(("CA", "fusion"), features, hidden, strict=True):
        for number, size in ((6, inputs), (7, width), (8, width)):
            add(f"fc{number}_{end}", classes if number == 8 else width, size)
    return shapes


def divided(divisor):
    return [tuple(width // divisor for width in widths) for widths in VGG16]


THIN = shapes_of(divided(16), divided(64), (32 * 16, 40 * 16), (8, 9), 5, trunk=4)
ONE_BLOCK = shapes_of([(2,)], [(1,)], (8, 12), (3, 4), 3, trunk=4)
PUBLISHED = shapes_of(VGG16, divided(4), (8192, 10240), (1024, 2048), 1000, trunk=16)


def random_blobs(shapes, dtype=np.float32):
    generator = np.random.default_rng(3)
    blobs = {}
    for name, sizes in shapes.items():
        if name.startswith("bn"):
            values = [generator.normal(size=3) * 900, generator.uniform(0.5, 2, size=3) * 1e6, [999.98]]
        else:
            scale = (2 / np.prod(sizes[0][1:])) ** 0.5
            values = [generator.normal(size=sizes[0]) * scale, generator.normal(size=sizes[1])]
        blobs[name] = [np.asarray(v, dtype) for v in values]
    return blobs


def scores_in_caffe(blobs, image):
    """The float64 scores of a uint8 RGB image, computed from the blobs by Caffe's rules."""
    weights = {name: [torch.from_numpy(b).double() for b in values] for name, values in blobs.items()}

    def convolution(name, x, stride=1):
        return F.conv2d(x, *weights[name], stride=stride, padding=1)

    def pool(x):  # rounds odd sizes up; windows at the edge are smaller
        return F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf), 2)

    def classifier(end, x):
        for number in (6, 7, 8):
            x = F.linear(x, *weights[f"fc{number}_{end}"])
            x = F.relu(x) if number < 8 else x
        return x

    x = image.double()[:, [2, 1, 0]]  # Caffe's images are blue, green, red
    for number in (1, 2, 3):
        x = F.relu(convolution(f"decom_conv{number}", x))
    ends = []
    for branch in ("CA", "CH"):
        y = convolution(f"decom_conv_{branch}", x, 2)
        mean, variance, factor = weights[f"bn_{branch}"]
        inverse = 0 if factor == 0 else 1 / factor
        y = (y - (mean * inverse).view(3, 1, 1)) / (variance * inverse + 1e-5).sqrt().view(3, 1, 1)
        for block in range(1, 6):
            names = [name for name in blobs if name.startswith(f"conv{block}_") and name.endswith(branch)]
            for name in names:
                y = F.relu(convolution(name, y))
            y = pool(y) if names else y
        ends.append(y.flatten(1))
    return classifier("CA", ends[0]) + classifier("fusion", torch.cat(ends, 1))


class Files:
    """A prototxt and a caffemodel in ``folder``."""

    def __init__(self, folder, blobs, **options):
        self.folder, self.blobs = folder, blobs
        self.prototxt, self.caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
        self.prototxt.write_text(prototxt(blobs, old=options.get("old", False)))
        self.caffemodel.write_bytes(caffemodel(blobs, **options))

    def edit(self, old, new, count=1):
        """Replace text in the prototxt."""
        text = self.prototxt.read_text()
        assert old in text
        self.prototxt.write_text(text.replace(old, new, count))

    def load(self, model):
        return caffe.load(self.prototxt, self.caffemodel, model)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path, random_blobs(ONE_BLOCK))


# ---------------------------------------------------------------------------------------------- what it reads


@pytest.mark.parametrize("size", [(224, 224), (193, 255)], ids=str)
def test_scores_match_caffe(tmp_path, size):
    files, model = Files(tmp_path, random_blobs(THIN)), thin_vgg16()
    files.load(model)
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        scores = model.eval()(image)
    expected = scores_in_caffe(files.blobs, image)
    assert (scores - expected).norm() <= 1e-5 * expected.norm()
    assert (scores - scores_in_caffe(files.blobs, image.flip(1))).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("old", [False, True], ids=["LayerParameter", "V1LayerParameter"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("legacy", [False, True], ids=["BlobShape", "4-d"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_file_format_is_read(tmp_path, old, packed, legacy, dtype):
    blobs = random_blobs(ONE_BLOCK, dtype)
    files, model = Files(tmp_path, blobs, old=old, packed=packed, legacy=legacy), one_block()
    files.load(model)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert np.array_equal(state["encoder.conv1.weight"], blobs["decom_conv1"][0][:, ::-1].astype(np.float32))
    assert np.array_equal(state["encoder.conv1.bias"], blobs["decom_conv1"][1].astype(np.float32))
    pairs = {
        "encoder.conv3": "decom_conv3",
        "encoder.low": "decom_conv_CA",
        "encoder.high": "decom_conv_CH",
        "low_body.0": "conv1_1_CA",
        "high_body.0": "conv1_1_CH",
        "low_classifier.0": "fc6_CA",
        "fusion_classifier.3": "fc7_fusion",
        "fusion_classifier.6": "fc8_fusion",
    }
    for ours, theirs in pairs.items():
        for key, values in zip(("weight", "bias"), blobs[theirs], strict=True):
            assert np.array_equal(state[f"{ours}.{key}"], values.astype(np.float32))
    assert {str(tensor.dtype) for tensor in state.values()} == {"float32", "int64"}


@pytest.mark.parametrize("factor", [0.0, 1.0, 0.25])
def test_scale_factor_of_the_normalisation(tmp_path, factor):
    blobs = random_blobs(ONE_BLOCK)
    for name in ("bn_CA", "bn_CH"):
        blobs[name][2][:] = factor
    files, model = Files(tmp_path, blobs), one_block()
    files.load(model)
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    expected = scores_in_caffe(blobs, image)
    with torch.no_grad():
        assert (model.eval()(image) - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(model.low_norm.running_mean == 0, torch.full((3,), factor == 0))


def test_image_scale_and_shift_are_reset(files):
    model = one_block()
    model.image_scale.fill_(7)
    files.load(model)
    assert model.image_scale.tolist() == [1, 1, 1]
    assert model.image_shift.tolist() == [0, 0, 0]


def test_a_model_on_the_meta_device_can_be_loaded(files):
    with torch.device("meta"):
        model = one_block()
    files.load(model)
    other = one_block()
    files.load(other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_file_of_the_published_size_is_read(tmp_path):
    """WAE-VGG16 itself: 213 MB of zeros, which take no disk space."""
    zeros = {n: [np.broadcast_to(np.float32(0), shape) for shape in s] for n, s in PUBLISHED.items()}
    path, text = tmp_path / "net.caffemodel", tmp_path / "net.prototxt"
    text.write_text(prototxt(zeros))
    with open(path, "wb") as file:
        for name, shapes in PUBLISHED.items():
            write_sparse(file, name, shapes)
        file.truncate()
    with torch.device("meta"):
        model = wae_vgg16()
    caffe.load(text, path, model)
    assert sum(p.numel() for p in model.parameters()) == 53_324_582
    assert not any(p.any() for p in model.parameters())


def write_sparse(file, name, shapes):
    """Write a layer whose values are holes in the file."""
    heads = []
    for shape in shapes:
        size = 4 * int(np.prod(shape))
        head = delimited(7, delimited(1, b"".join(map(varint, shape)))) + varint(5 << 3 | 2) + varint(size)
        heads.append((varint(7 << 3 | 2) + varint(len(head) + size) + head, size))
    named = delimited(1, name.encode())
    length = len(named) + sum(len(head) + size for head, size in heads)
    file.write(varint(100 << 3 | 2) + varint(length) + named)
    for head, size in heads:
        file.write(head)
        file.truncate(file.tell() + size)
        file.seek(size, os.SEEK_CUR)


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def thin_networks(monkeypatch):
    """The command builds the thin WAE-VGG16."""
    monkeypatch.setattr(caffe, "wae_vgg16", thin_vgg16)
    monkeypatch.setitem(checkpoint._NETWORKS, "wae_vgg16", thin_vgg16)


def test_the_command_writes_a_checkpoint_with_network_and_origin(tmp_path, thin_networks, capsys):
    files, out = Files(tmp_path, random_blobs(THIN)), tmp_path / "out.safetensors"
    with open(files.caffemodel, "ab") as file:
        file.write(delimited(100, layer("recon_conv1", [np.ones((2, 2, 3, 3), np.float32)])))
    assert run("import-caffe", files.prototxt, files.caffemodel, "-o", out) == 0
    assert "recon_conv1" in capsys.readouterr().out
    model, expected = checkpoint.load_classifier(out), thin_vgg16().eval()
    files.load(expected)
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(image), expected(image))

    with safe_open(out, framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    assert recipe["architecture"] == {"network": "wae_vgg16", "classes": 5}
    for kind in ("prototxt", "caffemodel"):
        digest = hashlib.sha256((tmp_path / f"net.{kind}").read_bytes()).hexdigest()
        assert recipe["origin"][kind] == {"name": f"net.{kind}", "sha256": digest}
    assert recipe["origin"]["unused"] == "recon_conv1"
    assert recipe["origin"]["input"].startswith("red, green, blue")


def test_the_command_replaces_a_file_only_with_force_and_never_on_failure(tmp_path, thin_networks, capsys):
    files, out = Files(tmp_path, random_blobs(THIN)), tmp_path / "out.safetensors"
    assert run("import-caffe", files.prototxt, files.caffemodel, "-o", out) == 0
    before = out.read_bytes()
    assert run("import-caffe", files.prototxt, files.caffemodel, "-o", out) == 1
    assert "--force" in capsys.readouterr().err
    assert run("import-caffe", files.prototxt, files.caffemodel, "-o", files.caffemodel, "--force") == 1
    assert "is the input" in capsys.readouterr().err
    out.write_bytes(b"old")
    assert run("import-caffe", files.prototxt, files.caffemodel, "-o", out, "--force") == 0
    assert out.read_bytes() == before
    files.edit("num_output: 5", "num_output: 4", 1)
    assert run("import-caffe", files.prototxt, files.caffemodel, "-o", out, "--force") == 1
    assert "net.prototxt: fc8_fusion: num_output must be" in capsys.readouterr().err
    assert out.read_bytes() == before


# -------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_output: 2", "num_output: 7", r"conv1_1_CA: num_output must be 2, got 7"),
        ("stride: 2", "stride: 1", r"decom_conv_CA: stride must be \(2, 2\), got \(1, 1\)"),
        ("stride: 1", "stride_h: 1 stride_w: 3", r"decom_conv1: stride must be \(1, 1\), got \(1, 3\)"),
        ("stride: 1", "stride: 1 stride: 3", r"decom_conv1: stride must be \(1, 1\), got \(1, 3\)"),
        ("stride: 1", "stride: 1 stride: 1 stride: 3", r"decom_conv1: stride must be .*, got \(1, 1, 3\)"),
        ("stride: 1", "stride: 1 " * 99, r"decom_conv1: stride must be \(1, 1\), got \((1, ){26}1$"),
        ("pad: 1", "", r"decom_conv1: pad must be \(1, 1\), got \(0, 0\)"),
        ("pad: 1", "pad: 0", r"decom_conv1: pad must be \(1, 1\), got \(0, 0\)"),
        ("pad: 1", "pad: 1 bias_term: false", r"decom_conv1: bias_term must be True, got False"),
        ("pad: 1", "pad: 1 group: 2", r"decom_conv1: group must be 1, got 2"),
        ("pad: 1", "pad: 1 axis: 2", r"decom_conv1: axis must be 1, got 2"),
        ("pad: 1", "pad: 1 dilation: 2", r"decom_conv1: dilation must be \(1, 1\), got \(2, 2\)"),
        (
            "kernel_size: 3",
            "kernel_size: 5 pad: 2",
            r"pad must be|kernel_size must be \(3, 3\), got \(5, 5\)",
        ),
        ('"Convolution"', '"Deconvolution"', r"decom_conv1 must be of type convolution, got deconvolution"),
        ("global_stats: true", "global_stats: false", r"bn_CA: use_global_stats must be True, got False"),
        ("batch_norm_param {", "batch_norm_param { eps: 0.1", r"bn_CA: eps must be .*, got 0.1"),
        ("batch_norm_param {", "batch_norm_param { eps: 1.001e-5", r"eps must be 1e-05, got 1.001e-05"),
        ("num_output: 4\n  }", "num_output: 4 transpose: true }", r"transpose must be False, got True"),
        ("num_output: 4\n  }", "num_output: 4 axis: 2 }", r"fc6_fusion: axis must be 1, got 2"),
        ("num_output: 4\n  }", "num_output: 4 bias_term: false }", r"bias_term must be True, got False"),
        ('type: "Convolution"', "", r"decom_conv1 must be of type convolution, got none"),
        ('"Convolution"', f'"{"x" * 500}"', r"decom_conv1 must be of type convolution, got x{40}$"),
        ('bottom: "data"', 'bottom: "label"', r"decom_conv1 must take image, got another input"),
        ('bottom: "data"', 'bottom: "data" bottom: "label"', r"must take image, got image, another input"),
        ('name: "fc7_CA"', 'name: "fc7_XY"', r"missing here: fc7_CA; .*not part of it: fc7_XY"),
        ('"ReLU"', '"Sigmoid"', r"decom_conv2 must take relu\(decom_conv1\), got sigmoid\(decom_conv1\)"),
        (
            '"ReLU"',
            '"ReLU" relu_param { negative_slope: 0.5 }',
            r"got relu\[negative_slope 0.5\]\(decom_conv1\)",
        ),
        ("pool: MAX", "pool: AVE", r"must take pool\(.*got pool\[pool 'AVE'\]\(relu\(conv1_1_CA\)\)"),
        ("pool: MAX", "pad: 1", r"got pool\[pad \(1, 1\)\]"),
        ("pool: MAX", "global_pooling: true", r"got pool\[global_pooling True\]"),
        ("kernel_size: 2", "kernel_h: 2 kernel_w: 3", r"got pool\[kernel_size \(2, 3\)\]"),
        ("pool: MAX", "round_mode: FLOOR", r"got pool\[round_mode 'FLOOR'\]"),
        ("pool: MAX", "ceil_mode: false", r"got pool\[round_mode 'FLOOR'\]"),
        ("pool: MAX", "torch_pooling: true", r"got pool\[round_mode 'FLOOR'\]"),
        ('bottom: "low_2"', 'bottom: "conv1_1_CA"', r"fc6_fusion must take .*, got concat\(relu\(c"),
        ("axis: 1", "axis: 2", r"fc6_fusion must take .*, got concat\[axis 2\]"),
        ("axis: 1", "concat_dim: 2", r"fc6_fusion must take .*, got concat\[axis 2\]"),
        ("operation: SUM", "operation: MAX", r"no layer gives the scores, sum\(fc8_CA, fc8_fusion\)"),
        ("operation: SUM", "coeff: 1 coeff: 2", r"no layer gives the scores"),
        ('bottom: "fc6_CA"', 'bottom: "nowhere"', r"no layer before it gives 'nowhere'"),
        ("mirror: false", "mean_value: 104", r"mean_value must not be given: pixels are 0..255"),
        ("mirror: false", "scale: 0.017", r"scale must be 1"),
        ("mirror: false", 'mean_file: "mean"', r"data: mean_file must not be given"),
        ("mirror: false", "force_gray: true", r"data: force_gray must not be given"),
        ("batch_size", "scale: 0.5 batch_size", r"data: scale must be 1, got 0.5"),
        ("phase: TEST", "phase: TRAIN", r"decom_conv1: no layer before it gives 'data'"),
        ("kernel_size: 3", "kernel_size: three", r"line \d+: .*: Couldn't parse integer: three"),
        ("{", "{ {", r"line \d+: .*: Expected identifier"),
    ],
)
def test_a_net_that_is_not_wae_vgg16_is_refused(files, old, new, message):
    files.edit(old, new)
    model = one_block()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CaffeError, match=f"net.prototxt: .*{message}"):
        files.load(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_high_before_low_is_refused(files):
    files.edit('bottom: "low_2"\n  bottom: "pool1_CH"', 'bottom: "pool1_CH"\n  bottom: "low_2"')
    with pytest.raises(CaffeError, match="fc6_fusion must take concat"):
        files.load(one_block())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('type: "Data"', 'type: "Input"'),
        (DATA, 'input: "data" input_dim: 1 input: "label"'),
        ("kernel_size: 3", "kernel_h: 3 kernel_w: 3"),
        ("kernel_size: 2", "kernel_h: 2 kernel_w: 2"),
        ("stride: 1", "stride_h: 1"),
        ("operation: SUM", ""),
        ('bottom: "fc8_CA_1"\n  bottom: "fc8_fusion_1"', 'bottom: "fc8_fusion_1"\n  bottom: "fc8_CA_1"'),
        ("include {\n    phase: TEST", "exclude {\n    phase: TRAIN"),
        ("include {\n    phase: TEST", "include { phase: TRAIN } include {\n    phase: TEST"),
        ("include {\n    phase: TEST", "exclude { max_level: -1 } exclude {\n    phase: TRAIN"),
        ("batch_norm_param {", "batch_norm_param { eps: 0.00001"),
        ("batch_norm_param {", "batch_norm_param { eps: 9.99999975e-06"),
        ("pool: MAX", "pool: 0 round_mode: 0"),
        ("pool: MAX", "ceil_mode: true"),
        ("phase: TEST", "phase: 1"),
        ("weight_filler {", "param { lr_mult: +2 } weight_filler {"),
        ('name: "data"', 'name: "d\\141ta"'),
        ('"somewhere/lmdb"', '"C:\\\\data"'),
    ],
)
def test_equivalent_prototxts_are_accepted(files, old, new):
    files.edit(old, new)
    files.load(one_block())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk", "utf-16"])
def test_prototxts_in_other_encodings_are_read(files, encoding):
    files.edit("somewhere/lmdb", "数据/lmdb")
    files.prototxt.write_bytes(("# 网络\n" + files.prototxt.read_text()).encode(encoding))
    files.load(one_block())


@pytest.mark.parametrize(
    "rule",
    [
        "include { phase: TRAIN }",
        "exclude { phase: TEST }",
        "exclude { phase: TRAIN } exclude { phase: TEST }",
        "exclude { }",
        'include { stage: "deploy" }',
        "include { min_level: 1 }",
        "include { max_level: -1 }",
    ],
)
def test_layers_outside_the_test_net_are_ignored(files, rule):
    """The test net has phase TEST, level 0 and no stage."""
    text = files.prototxt.read_text()
    extra = f"""layer {{ name: "bn_CA" type: "BatchNorm" bottom: "decom_conv_CA" top: "x"
        {rule} batch_norm_param {{ use_global_stats: false }} }}"""
    extra += """
        layer { name: "recon" type: "Deconvolution" bottom: "decom_conv_CA" top: "image2" }"""
    files.prototxt.write_text(text + extra)
    files.load(one_block())


def with_blobs(**changed):
    """The blobs of the net with these changes; None leaves a blob out."""
    blobs = random_blobs(ONE_BLOCK) | changed
    return {name: values for name, values in blobs.items() if values is not None}


def filled(*shapes, value=1.0):
    return [np.full(shape, value, np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fc7_CA": None}, r"missing here: fc7_CA$"),
        ({"fc7_CA": None, "fc7_XY": filled((2, 2))}, r"missing here: fc7_CA; .*not part of it: fc7_XY$"),
        ({"conv1_1_CA": filled((2, 4, 3, 3), 2)}, r"conv1_1_CA: .* \(2, 3, 3, 3\), got \(2, 4, 3, 3\)"),
        ({"fc6_CA": filled((3, 9), (3,))}, r"fc6_CA: weight must have the shape \(3, 8\), got \(3, 9\)"),
        ({"fc6_CA": filled((3, 8), (1,))}, r"fc6_CA: bias must have the shape \(3,\), got \(1,\)"),
        ({"fc6_CA": filled((3, 8))}, r"fc6_CA must have weight, bias, got 1 blob$"),
        ({"bn_CA": filled(3, 3)}, r"bn_CA must have mean, variance, scale factor, got 2 blobs"),
        ({"bn_CA": filled(3, 3, 3)}, r"bn_CA: scale factor must have the shape \(1,\), got \(3,\)"),
        ({"bn_CA": filled(3, 3, 1, value=-1.0)[:2] + filled(1)}, r"bn_CA: .*variance is below 0"),
        ({"bn_CA": filled(3, 3) + filled(1, value=1e-45)}, r"bn_CA: .*not finite"),
        ({"bn_CA": filled(3, value=3e38) + filled(3) + filled(1, value=0.5)}, r"bn_CA: .*not finite"),
        ({"fc8_CA": filled((3, 3), 3, value=np.nan)}, r"fc8_CA: weight has numbers that are not finite"),
        ({"fc8_CA": [np.full((3, 3), 1e300), np.ones(3)]}, r"fc8_CA: weight has numbers that are not finite"),
        ({"decom_conv2": filled((4, 4), 4)}, r"decom_conv2 must be of type convolution, got innerproduct"),
        ({"decom_conv2": filled((4, 4, 5, 5), 4)}, r"kernel_size must be \(3, 3\), got \(5, 5\)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(files, changed, message):
    files.caffemodel.write_bytes(caffemodel(with_blobs(**changed)))
    with pytest.raises(CaffeError, match=f"net.caffemodel: .*{message}"):
        files.load(one_block())


@pytest.mark.parametrize("count", [23, 25])
def test_a_blob_must_have_as_many_values_as_its_shape(files, count):
    values = np.ones((3, 8), np.float32)
    others = np.ones(count, np.float32)
    inconsistent = blob(values).replace(varint(96) + values.tobytes(), varint(4 * count) + others.tobytes())
    fields = delimited(1, b"fc6_CA") + delimited(7, inconsistent) + delimited(7, blob(np.ones(3, np.float32)))
    files.caffemodel.write_bytes(caffemodel(with_blobs(fc6_CA=None)) + delimited(100, fields))
    with pytest.raises(CaffeError, match=f"fc6_CA: weight needs 24 numbers, got {count}"):
        files.load(one_block())


def test_layer_options_in_a_caffemodel_must_agree(files):
    """Only the type is required."""
    others, weights = caffemodel(with_blobs(fc7_CA=None)), filled((3, 3), 3)
    named = delimited(1, b"fc7_CA") + delimited(2, b"InnerProduct")
    bare = named + b"".join(delimited(7, blob(values)) for values in weights)
    files.caffemodel.write_bytes(others + delimited(100, bare))
    files.load(one_block())
    transposed = layer("fc7_CA", weights) + delimited(117, integer(6, 1))
    files.caffemodel.write_bytes(others + delimited(100, transposed))
    with pytest.raises(CaffeError, match="fc7_CA: transpose must be False, got True"):
        files.load(one_block())


def test_two_layers_of_the_same_name_are_refused(files):
    with open(files.caffemodel, "ab") as file:
        file.write(delimited(100, layer("fc6_CA", filled((3, 8), 3))))
    with pytest.raises(CaffeError, match="there are two layers fc6_CA with weights"):
        files.load(one_block())


def test_a_huge_shape_allocates_nothing(files):
    huge = delimited(7, delimited(1, varint(2**40) * 4)) + integer(9, 1)
    fields = delimited(1, b"fc6_CA") + delimited(7, huge) + delimited(7, huge)
    files.caffemodel.write_bytes(caffemodel(with_blobs(fc6_CA=None)) + delimited(100, fields))
    with pytest.raises(CaffeError, match=r"must have the shape \(3, 8\), got \(1099511627776, "):
        files.load(one_block())


@pytest.mark.parametrize("classes", ["0", "-3", "99999999999999999999", "2147483647"])
def test_invalid_numbers_of_classes_are_refused_without_allocation(tmp_path, classes):
    files = Files(tmp_path, random_blobs(ONE_BLOCK))
    text = files.prototxt.read_text()
    files.prototxt.write_text(text.replace("num_output: 3\n", f"num_output: {classes}\n"))
    with pytest.raises(CaffeError, match=r"net\.prototxt: "):
        caffe.convert(files.prototxt, files.caffemodel, tmp_path / "out")


@pytest.mark.parametrize("which", ["prototxt", "caffemodel"])
@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "noise", "pipe"])
def test_unreadable_files_are_refused(files, which, kind):
    path = getattr(files, which)
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(CaffeError, match=f"net.{which}: "):
        files.load(one_block())


@pytest.mark.parametrize("which", ["prototxt", "caffemodel"])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "this is a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "this is a web page"),
        (b"\xef\xbb\xbf<HTML>", "this is a web page"),
        (b"\x89HDF\r\n\x1a\n\0\0", "this is an HDF5 file"),
        (b"PK\x03\x04\x14\0", "this is a zip archive"),
        (b"\x1f\x8b\x08\0", "this is a gzip archive"),
    ],
)
def test_other_file_types_are_named(files, which, start, message):
    getattr(files, which).write_bytes(start)
    with pytest.raises(CaffeError, match=f"net.{which}: {message}"):
        files.load(one_block())


def test_swapped_files_are_refused(files):
    with pytest.raises(CaffeError):
        caffe.load(files.caffemodel, files.prototxt, one_block())


def test_a_huge_prototxt_is_refused(files):
    os.truncate(files.prototxt, 1 << 33)
    with pytest.raises(CaffeError, match="this file has 8589934592 bytes"):
        files.load(one_block())


def test_a_net_that_grows_exponentially_when_expanded_is_read(files):
    """Each layer takes the one before it twice."""
    layers = [
        f'layer {{ name: "c{i}" type: "Concat" bottom: "c{i}" bottom: "c{i}" top: "c{i + 1}" }}'
        for i in range(3000)
    ]
    text = files.prototxt.read_text()
    files.prototxt.write_text(text + 'layer { name: "c" type: "Data" top: "c0" }' + "\n".join(layers))
    files.load(one_block())


def test_up_to_eight_names_are_listed(files):
    names = {f"x{i}": filled((2, 2)) for i in range(8)}
    files.caffemodel.write_bytes(caffemodel(with_blobs(fc7_CA=None, **names)))
    with pytest.raises(CaffeError, match=r"x0, x1, x2, x3, x4, x5, x6, x7$"):
        files.load(one_block())


def test_long_names_are_shortened_and_escaped_in_errors(files):
    names = {f"{'x' * 500}\x1b[2J{i}": filled((2, 2)) for i in range(100)}
    files.caffemodel.write_bytes(caffemodel(with_blobs(fc7_CA=None, **names)))
    with pytest.raises(CaffeError, match="and 92 more") as caught:
        files.load(one_block())
    assert len(str(caught.value)) < 1500
    assert "\x1b" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- damaged files

EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["set", "insert", "delete", "cut", "repeat"]), st.binary(max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def damaged(data, edits):
    for where, what, new in edits:
        at = int(where * len(data))
        if what == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif what == "insert":
            data = data[:at] + new + data[at:]
        elif what == "delete":
            data = data[:at] + data[at + len(new) :]
        elif what == "cut":
            data = data[:at]
        else:
            data = data[:at] + data[at // 2 : at] + data[at:]
    return data


@pytest.mark.slow
@settings(max_examples=80)
@given(
    edits=EDITS, which=st.sampled_from(["prototxt", "caffemodel"]), old=st.booleans(), packed=st.booleans()
)
def test_damaged_files_load_or_raise_one_error(tmp_path, edits, which, old, packed):
    files = Files(tmp_path, random_blobs(ONE_BLOCK), old=old, packed=packed)
    path = getattr(files, which)
    path.write_bytes(damaged(path.read_bytes(), edits))
    model = one_block()
    tracemalloc.start()
    start = time.process_time()
    try:
        files.load(model)
    except CaffeError as error:
        problem = str(error)
    else:
        problem = ""
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
    assert seconds < 5
    assert not problem or problem.startswith(str(tmp_path))


@pytest.mark.parametrize("seed", range(3))
def test_truncated_caffemodels_are_refused(files, seed):
    """One that ends between two layers lacks layers."""
    data = files.caffemodel.read_bytes()
    for size in np.random.default_rng(seed).integers(1, len(data), 40):
        files.caffemodel.write_bytes(data[:size])
        with pytest.raises(CaffeError, match=r"net\.caffemodel: "):
            files.load(one_block())
