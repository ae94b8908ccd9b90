import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from mi_audit.nn.anatomy import dissect
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.freezing import freeze, train_mode
from mi_audit.train import prefix as module
from mi_audit.train.prefix import frozen_prefix, prefix_ends
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset

EXAMPLE = torch.zeros(1, 3, 8, 8)


def frozen_cnn(spec="60%", net=None):
    torch.manual_seed(0)
    net = net or plain_cnn()
    freeze(net, spec, EXAMPLE)
    return net


def trained(net, prefix, data, steps=6):
    """Losses and weights of a few steps on the same batches."""
    rng = torch.Generator().manual_seed(1)
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        rows = torch.randperm(len(data), generator=rng)[:8]
        train_mode(net)
        images = data.pixels[rows].float() / 255
        logits = net(images) if prefix is None else prefix.logits(images, rows)
        loss = F.cross_entropy(logits, data.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, {name: value.clone() for name, value in net.state_dict().items()}


def test_trains_to_the_same_losses_and_weights_with_and_without():
    data = dataset()
    plain, weights = trained(frozen_cnn(), None, data)
    net = frozen_cnn()
    prefix, note = frozen_prefix(net, data, device="cpu")
    assert prefix is not None and prefix.name == "8" and note.startswith("the frozen prefix, up to 8, ran once")
    cached, same = trained(net, prefix, data)
    assert cached == pytest.approx(plain, rel=1e-5)
    assert all(torch.allclose(value.float(), same[name].float(), atol=1e-5) for name, value in weights.items())


def test_the_prefix_does_not_run_and_the_network_stays_as_it_is():
    data, net = dataset(), frozen_cnn()
    net.train()
    before = [part.training for part in net.modules()]
    prefix, _ = frozen_prefix(net, data, device="cpu")
    assert [part.training for part in net.modules()] == before
    with torch.no_grad():
        expected = net.eval()(data.images())
        net[0].weight.fill_(float("nan"))
        found = prefix.logits(data.images(), torch.arange(len(data)))
        assert torch.allclose(found, expected, atol=1e-5)
        assert net(data.images()).isnan().all()  # and runs again without the cache
    assert not any("forward" in part.__dict__ or part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("spec", ["stage:1", "stage:3", "linear-probe", "module:layer2.0.bn1"])
def test_a_resnet_goes_on_behind_its_last_frozen_module(spec):
    torch.manual_seed(0)
    net = Classifier(torchvision.models.resnet18(num_classes=4), size=16, channels=3, mean=(0.5,), std=(0.5,))
    freeze(net, spec, EXAMPLE)
    data = dataset()
    prefix, note = frozen_prefix(net, data, device="cpu", batch_size=7)
    ends = {"stage:1": "net.layer1", "stage:3": "net.layer3", "linear-probe": "net.avgpool"}
    if spec in ends:
        assert prefix is not None and prefix.name == ends[spec]
    else:  # the shortcut goes round every later end: what is inside the block runs again
        assert prefix is not None and prefix.name == "net.layer1"
    rows = torch.tensor([5, 1, 1, 9])
    net.eval()
    assert torch.allclose(prefix.logits(data.images()[rows], rows), net(data.images()[rows]), atol=1e-4), note


@pytest.mark.parametrize(
    ("name", "spec", "kept"),
    [("vit_b_16", "75%", True), ("densenet121", "index:9", True), ("densenet121", "80%", False)],
)
def test_other_families_agree_or_fall_back(name, spec, kept):
    more = {"image_size": 32} if name.startswith("vit") else {}
    net = torchvision.models.get_model(name, weights=None, num_classes=4, **more)
    data = dataset(size=32)
    freeze(net, spec, data.images(slice(0, 1), "cpu"))
    prefix, note = frozen_prefix(net, data, device="cpu")
    assert (prefix is not None) == kept, note  # inside a dense block every earlier layer goes round the cut


def test_without_frozen_layers_nothing_is_kept():
    prefix, note = frozen_prefix(plain_cnn(), dataset(), device="cpu")
    assert prefix is None and note == "no frozen prefix: nothing to keep"


def test_too_many_features_are_not_kept(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda _device: 1000)
    prefix, note = frozen_prefix(frozen_cnn(), dataset(), device="cpu")
    assert prefix is None and "over a quarter of what is free" in note


def test_a_way_round_the_end_is_noticed():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

        def forward(self, images):
            early = self.first(images)
            late = self.second(early)
            return self.head((early + late).mean(dim=(2, 3)))

    net = Around()
    for part in (net.first, net.second):
        part.requires_grad_(False)
    prefix, note = frozen_prefix(net, dataset(), device="cpu")
    assert prefix is not None and prefix.name == "first", note
    with torch.no_grad():
        net.head.weight.zero_()  # a fresh head that hides every difference in the logits
    assert frozen_prefix(net, dataset(), device="cpu")[0].name == "first"


def test_a_prefix_that_is_random_in_training_is_noticed():
    class Noisy(nn.Module):
        def forward(self, maps):
            return F.dropout(maps, 0.5, self.training)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Noisy(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    assert prefix_ends(net, dissect(net, EXAMPLE))[0] == "3"  # nothing tells by name
    prefix, note = frozen_prefix(net, dataset(), device="cpu")
    assert prefix is not None and prefix.name == "0", note


def test_taps_end_the_prefix():
    net = frozen_cnn()
    anatomy = dissect(net, EXAMPLE)
    assert prefix_ends(net, anatomy)[:2] == ("8", "7")
    assert prefix_ends(net, anatomy, {"8", "17"})[0] == "8"  # what it gives is what was kept
    assert prefix_ends(net, anatomy, {"5", "8"})[0] == "5"
    assert prefix_ends(net, anatomy, {"never ran"}) == ()
    prefix, _ = frozen_prefix(net, dataset(), device="cpu", taps={"5"})
    assert prefix is not None and prefix.name == "5"


def test_only_the_first_pass_goes_on_from_what_was_kept():
    net, images = frozen_cnn().eval(), dataset().images()
    prefix, _ = frozen_prefix(net, dataset(), device="cpu")
    with torch.no_grad(), prefix.instead(torch.zeros(len(images), dtype=torch.int64)):
        assert len(net(images).unique(dim=0)) == 1  # all of them the first image
        assert torch.equal(net(images), frozen_cnn().eval()(images))


def test_where_free_memory_is_unknown_a_quarter_of_all_counts(monkeypatch):
    sizes = {"SC_PHYS_PAGES": 40, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(module.os, "sysconf_names", sizes)
    monkeypatch.setattr(module.os, "sysconf", sizes.__getitem__)
    assert module.free_memory("cpu") == 10 * 4096


def test_the_prefix_ends_before_random_layers():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    net[0].requires_grad_(False)
    assert prefix_ends(net, dissect(net, EXAMPLE)) == ("1", "0")
    net[2] = nn.Identity()
    assert prefix_ends(net, dissect(net, EXAMPLE))[0] == "4"


def test_a_module_that_is_used_again_behind_the_prefix_runs_there():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.second, self.head = (
                nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)
            )  # fmt: skip

        def forward(self, images):
            return self.head(self.act(self.second(self.act(self.first(images)))).mean(dim=(2, 3)))

    torch.manual_seed(0)
    net, data = Shared(), dataset()
    net.first.requires_grad_(False)
    prefix, note = frozen_prefix(net, data, device="cpu")
    assert prefix is not None and prefix.name == "act", note
    rows = torch.arange(4)
    assert torch.allclose(prefix.logits(data.images()[rows], rows), net(data.images()[rows]), atol=1e-6)
