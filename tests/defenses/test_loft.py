import json

import pytest
import torch
from torch import nn

from mi_audit.audit.composition import compose
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.loft import LoFt, default_rank
from mi_audit.nn import edits
from mi_audit.nn.heads import LowRankHead
from tests.nn.test_anatomy import plain_cnn

EXAMPLE = torch.zeros(1, 3, 8, 8)


def classifier(classes, width=64):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


@pytest.mark.parametrize(
    ("classes", "rank"), [(21, 20), (80, 20), (81, 21), (100, 25), (199, 50), (200, 50), (530, 50), (1000, 50)]
)
def test_the_rank_follows_the_classes(classes, rank):
    assert default_rank(classes) == rank
    assert LoFt().edits(classifier(classes), EXAMPLE)[0]["rank"] == rank


def test_replaces_the_head_by_plain_data():
    edit = {"edit": "low-rank-head", "layer": "3", "rank": 7, "norm": "layer"}
    net = classifier(40)
    found = LoFt(rank=7, norm="layer").edits(net, EXAMPLE)
    assert list(found) == [edit] and json.loads(json.dumps(list(found))) == [edit]
    edits.apply(net, found)
    assert isinstance(net[3], LowRankHead) and isinstance(net[3].norm, nn.LayerNorm)
    assert net(torch.rand(5, 3, 8, 8)).shape == (5, 40)


@pytest.mark.parametrize(
    ("defense", "net", "message"),
    [
        (LoFt(), classifier(20), r"below 20 classes and 64 features, got 20, .* set loft.rank=10 or use another"),
        (LoFt(), classifier(100, width=25), r"below 100 classes and 25 features, got 25"),
        (LoFt(rank=64), classifier(100), "got 64, which squeezes nothing"),
        (LoFt(rank=30), classifier(30), "got 30, which squeezes nothing"),
    ],
)
def test_refuses_a_rank_that_squeezes_nothing(defense, net, message):
    with pytest.raises(ConfigError, match=message):
        defense.edits(net, EXAMPLE)


def test_takes_a_rank_just_below_classes_and_features():
    assert LoFt(rank=29).edits(classifier(30), EXAMPLE)[0]["rank"] == 29
    assert LoFt(rank=63).edits(classifier(100), EXAMPLE)[0]["rank"] == 63
    assert LoFt(**LoFt.smoke).edits(plain_cnn(), EXAMPLE)[0]["rank"] == 2


def test_refuses_a_rank_below_one():
    with pytest.raises(ConfigError, match="expected rank >= 1, got 0"):
        LoFt(rank=0)


def test_images_that_must_not_mix_need_another_norm():
    for method in ("dp-sgd+loft", "loft+dp-sgd"):
        with pytest.raises(ConfigError, match=r"with dp-sgd, got loft with a batch norm.* set loft.norm=layer"):
            compose(method, {})
        for norm in ("layer", "none"):
            assert set(compose(method, {"loft": {"norm": norm}}).parts) == {"dp-sgd", "loft"}
    assert set(compose("loft+tldmi", {}).parts) == {"loft", "tldmi"}
