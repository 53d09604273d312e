"""Models, sizes and batches that cannot be deployed, and the example images."""

import pytest
import torch
from small_networks import SIZE
from torch import nn

from wae.inference.arguments import example_images
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES
from wae.inference.export import export
from wae.models.baselines import HalfResolution


def test_a_model_in_training_mode_is_refused(model):
    for part, name in ((model.low_body[1], r"low_body\.1"), (model, "the model")):
        part.train()
        with pytest.raises(ValueError, match=rf"{name} is in training mode: call model\.eval\(\)"):
            deploy(model, SIZE)


def test_a_model_without_parameters_on_one_real_device_is_refused(model):
    partly_on_meta = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")).eval()
    for wrong in (partly_on_meta, model.to("meta"), nn.ReLU().eval()):
        with pytest.raises(ValueError, match="parameters on one device"):
            deploy(wrong, SIZE)


def test_a_lazy_layer_that_was_never_called_is_refused_by_name(stock, tmp_path):
    network = nn.Sequential(stock, nn.LazyLinear(2)).eval()
    for refused in (deploy, lambda *given: export(given[0], tmp_path / "a", "torch", given[1])):
        with pytest.raises(ValueError, match=r"model must be complete, but 1\.weight has no shape"):
            refused(network, SIZE)


@pytest.mark.parametrize("name", ["low_classifier.0.weight", "encoder.conv2.bias", "high_norm.running_var"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_weights_that_are_not_finite_are_refused_by_name(name, value, engine, model):
    """Even if a ReLU behind them makes the scores finite."""
    model.state_dict()[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=f"finite numbers only, but {name} has"):
        deploy(model, SIZE, engine=engine)


def test_too_many_pixels_are_refused(model):
    for size, batch in (((100_000, 100_000), 1), (SIZE, 10**12)):
        with pytest.raises(ValueError, match="batch times size must be at most 268435456 pixels, got"):
            deploy(model, size, batch)


def test_example_images_have_the_dtype_and_range_that_the_network_expects(model, stock):
    assert example_images(model, 2, SIZE).dtype == torch.uint8
    assert example_images(stock, 2, SIZE).abs().mean() < 2
    assert torch.equal(example_images(stock, 2, SIZE), example_images(stock, 2, SIZE))
    for network, dtype in ((model, torch.float32), (stock, torch.uint8), (HalfResolution(stock), None)):
        images = example_images(network, 2, SIZE, dtype).float()
        assert 100 < images.mean() < 156
        assert 30 < images.std() < 70
        assert (images.min(), images.max()) == (0, 255)


def test_example_images_do_not_depend_on_the_default_device(model):
    """It is the network's own while one is deployed in inference mode. GPUs refuse generators of the CPU."""
    images = example_images(model, 2, SIZE)
    with torch.device("meta"):
        assert torch.equal(example_images(model, 2, SIZE), images)
