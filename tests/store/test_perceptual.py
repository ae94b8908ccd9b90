import hashlib
from functools import partial
from pathlib import Path

import lpips
import pytest
import torch
from torchvision.models import WeightsEnum

from mi_audit.store import perceptual as store
from mi_audit.store.perceptual import halves, perceptual


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub folder of its own, from which nothing leads to a network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def placed(folder, monkeypatch, content=b"weights"):
    """A file for AlexNet whose name carries the hash of `weights`."""
    name = f"alexnet-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    monkeypatch.setattr(store, "BACKBONES", {"alex": name})
    (folder / name).write_bytes(content)


def test_without_the_package_it_says_what_to_install(hub, monkeypatch):
    placed(hub, monkeypatch)
    monkeypatch.setattr(store, "find_spec", lambda _name: None)
    assert perceptual("alex", "cpu") == "the package lpips is not installed; install the extra `lpips`"


@pytest.mark.parametrize(("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_without_its_weights_it_says_which_file_belongs_where(hub, net, file):
    assert perceptual(net, "cpu").startswith(f"the weights {file} are missing, and are never downloaded; place this")


def test_a_damaged_file_is_not_loaded(hub, monkeypatch):
    placed(hub, monkeypatch, b"weig")
    assert "is damaged: its hash is not the one in its name" in perceptual("alex", "cpu")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_file_it_looks_for_is_the_one_that_is_loaded(hub, monkeypatch, net):
    class Loads(Exception):
        """Instead of loading."""

    def loads(weights, **_):
        raise Loads(Path(weights.url).name)

    file = store.BACKBONES[net]
    (hub / file).touch()
    monkeypatch.setattr(store, "hash_file", lambda path: path.stem.rpartition("-")[2] + "0" * 56)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", loads)
    with pytest.raises(Loads, match=f"^{file}$"):
        perceptual(net, "cpu")


def test_the_network_is_version_0_1_and_building_it_draws_no_random_numbers(hub, monkeypatch, recwarn):
    placed(hub, monkeypatch)
    monkeypatch.setattr(lpips, "LPIPS", partial(lpips.LPIPS, pnet_rand=True))
    state = torch.get_rng_state()
    found = perceptual("alex", "cpu")
    assert torch.equal(torch.get_rng_state(), state) and not recwarn.list
    fitted = torch.load(lpips.__path__[0] + "/weights/v0.1/alex.pth", map_location="cpu")
    for weights, expected in zip(found.weights, fitted.values(), strict=True):
        torch.testing.assert_close(weights, expected.flatten())


def test_maps_are_unit_vectors_of_grey_and_rgb_images_in_order():
    maps = halves(lpips.LPIPS(pnet_rand=True, verbose=False), "cpu").maps
    grey = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = maps(grey)
    assert [layer.shape[:2] for layer in found] == [(3, 64), (3, 192), (3, 384), (3, 256), (3, 256)]
    for layer, same in zip(found, maps(grey.flip(0).expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(layer.flip(0), same)
        assert layer.norm(dim=1).amax() == pytest.approx(1)
        assert not layer.requires_grad
