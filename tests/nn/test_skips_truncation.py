import pytest
import torch

from mi_audit.core.errors import ConfigError
from mi_audit.defenses.rolss import RoLSS
from mi_audit.defenses.ssf import SSF
from mi_audit.nn import edits, skips
from mi_audit.nn.skips_ratio import ratios
from tests.nn.test_skips import network

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("library", "name", "width"),
    [("torchvision", "densenet121", 37), ("torchvision", "densenet169", 38), ("timm", "densenet121", 37)],
)
def test_the_head_is_as_narrow_as_that_of_the_released_code(library, name, width):
    net = network(library, name)
    (edit,) = SSF(dense_mode="truncate").edits(net, IMAGES)
    edits.apply(net, (edit,))
    last = net.features.denseblock4
    assert (edit["keep"], net.classifier.in_features, net.features.norm5.num_features) == (width - 32, width, width)
    assert {layer.conv1.in_channels for layer in list(last.children())[1:]} == {width}
    assert last.denselayer1.conv1.in_channels > 500 and net(IMAGES).shape == (2, 10)
    factors = [skip.factor for skip in skips.find(net, IMAGES) if skip.block == edit["block"]]
    assert factors == [pytest.approx(0.01, rel=0.1)] * len(last)
    assert len(ratios(net, IMAGES)) == len(last)


def test_without_any_channel_a_layer_sees_what_the_layer_before_has_made():
    net, stock = network("torchvision", "densenet121"), network("torchvision", "densenet121")
    edits.apply(net, RoLSS(dense_mode="truncate").edits(stock, IMAGES))
    assert net.classifier.in_features == 32
    with torch.no_grad():
        features = stock.features[:-2](IMAGES)
        for layer in net.features.denseblock4.children():
            features = layer([features])
        expected = net.classifier(net.features.norm5(features).relu().mean(dim=(2, 3)))
        torch.testing.assert_close(net(IMAGES), expected)


def test_a_file_of_such_a_network_loads_into_one_that_was_edited_alike():
    net, again = network("torchvision", "densenet121"), network("torchvision", "densenet121")
    changes = RoLSS(dense_mode="truncate").edits(net, IMAGES)
    edits.apply(net, changes)
    edits.apply(again, changes)
    again.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(IMAGES), again.eval()(IMAGES))
    net.train()(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_what_has_no_channels_to_cut_off_is_refused():
    with pytest.raises(ConfigError, match="for DenseNets"):
        RoLSS(dense_mode="truncate").edits(network("torchvision", "resnet18"), IMAGES)
    net = network("torchvision", "densenet121")
    (edit,) = RoLSS(dense_mode="truncate").edits(net, IMAGES)
    for wrong in ({"block": "features.norm5"}, {"head": "features"}, {"keep": 512}, {"keep": -1}, {"keep": "5"}):
        with pytest.raises(ConfigError):
            edits.apply(net, ({**edit, **wrong},))
    assert net.classifier.in_features == 1024
