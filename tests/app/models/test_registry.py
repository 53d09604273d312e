"""What the networks cost, against the published figures; and docs/models.md, whose tables and code hold."""

import re
from pathlib import Path

import pytest

from wae.models.counting import count
from wae.models.registry import NETWORKS, PUBLISHED, around, encoder_multiply_adds, on_meta, table
from wae_kernels import backends

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"


def cost(name):
    network = on_meta(NETWORKS[name])
    return count(network).multiply_adds - encoder_multiply_adds(network)


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_the_published_ones(name):
    assert cost(name) == pytest.approx(PUBLISHED[name] * 1e9, rel=0.03)


def test_resnet50():
    assert cost("resnet50") == pytest.approx(4.1e9, rel=0.01)  # the usual figure
    wae = on_meta(NETWORKS["wae_resnet50"])
    half, quarter = count(wae.low_body, (112, 112)), count(wae.high_body, (112, 112))
    assert 14 < half.multiply_adds / quarter.multiply_adds < 16  # 16, but for the first layer's 3 channels
    assert cost("wae_resnet50") == half.multiply_adds + quarter.multiply_adds + 1000 * (2048 + 2560)


def test_only_encoders_are_counted_as_such():
    assert encoder_multiply_adds(on_meta(NETWORKS["vgg16"])) == 0
    assert encoder_multiply_adds(on_meta(NETWORKS["wavelet_vgg16"])) == 0
    assert encoder_multiply_adds(on_meta(NETWORKS["wae_resnet50"])) == 263_725_056


# ---------------------------------------------------------------------------------------- docs/models.md


@pytest.mark.parametrize(
    ("names", "shown"),
    re.findall(r"<!-- registry: *(.*?) *-->\n(.*?)\n?<!-- end -->", PAGE.read_text(), re.S),
)
def test_tables_are_what_the_command_prints(names, shown):
    pytest.importorskip("timm", reason="timm is not installed")
    expected = table(around(names.split()) if names else NETWORKS)
    assert shown == expected, f"docs/models.md must hold what `python -m wae.models.registry {names}` prints"


def test_the_examples_run():
    with_our_ops, around_a_body = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {}
    if backends.backend_for("cpu").startswith("cpu"):
        exec(with_our_ops, names)
        assert names["scores"].shape == (1, 1000)
    exec(around_a_body, names)
    assert names["loss"].isfinite()
    assert names["body"].features[0][0].weight.grad.isfinite().all()
