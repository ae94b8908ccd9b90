import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from mi_audit.store import inception


class Doubled(nn.Module):
    """Stands in for the network: returns one map, the mean colour twice."""

    BLOCK_INDEX_BY_DIM = {2048: 3}  # noqa: RUF012

    def __init__(self, blocks):
        super().__init__()
        assert blocks == [3]

    def forward(self, images):
        return [2 * images.mean(dim=(2, 3), keepdim=True)]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package, and a hub folder of its own."""
    package, module = ModuleType("pytorch_fid"), ModuleType("pytorch_fid.inception")
    module.InceptionV3 = Doubled
    monkeypatch.setitem(sys.modules, "pytorch_fid", package)
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", module)
    monkeypatch.setattr(inception, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_without_its_weights_nothing_is_downloaded(installed):
    assert inception.inception_features("cpu") is None


def test_without_the_package_there_are_no_features(installed, monkeypatch):
    monkeypatch.setattr(inception, "find_spec", lambda _name: None)
    installed.mkdir()
    (installed / inception.WEIGHTS).touch()
    assert inception.inception_features("cpu") is None


def test_features_are_the_pooled_ones_of_grey_and_rgb_in_order(installed):
    installed.mkdir()
    (installed / inception.WEIGHTS).touch()
    features = inception.inception_features("cpu")
    images = torch.linspace(0, 1, 51).view(51, 1, 1, 1).expand(-1, 1, 4, 4)  # more than one batch
    torch.testing.assert_close(features(images), 2 * torch.linspace(0, 1, 51)[:, None].expand(-1, 3))
