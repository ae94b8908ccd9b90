from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mi_audit.audit import embedding
from mi_audit.audit.embedding import as_embedding, photographs
from mi_audit.audit.progress import Silent
from mi_audit.audit.scene import Scene, open_scene
from tests.world import digit_plan


@pytest.fixture(scope="module")
def scene(digits: Path, tmp_path_factory: pytest.TempPathFactory):
    plan = digit_plan(digits, tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("cache"))
    with open_scene(plan, "attack", Silent()) as opened:
        yield opened


def test_a_second_audit_looks_at_no_public_picture_and_sees_the_same(scene: Scene, monkeypatch):
    pixels = scene.splits.test.pixels[:5]
    first = as_embedding(scene, scene.model)(pixels)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(5))
    monkeypatch.setattr(embedding, "within_class_whitening", None)
    assert torch.equal(as_embedding(scene, scene.model)(pixels), first)


@pytest.mark.parametrize("changed", ["network", "pictures"])
def test_another_network_or_other_public_pictures_are_whitened_anew(scene: Scene, changed: str, monkeypatch):
    as_embedding(scene, scene.model)
    monkeypatch.setattr(embedding, "within_class_whitening", None)
    other = replace(scene.model, sha256="1" * 64) if changed == "network" else scene.model
    public = replace(scene.public, fingerprint="2" * 64) if changed == "pictures" else scene.public
    with pytest.raises(TypeError, match="NoneType"):
        as_embedding(replace(scene, public=public), other)


def test_unlabelled_public_pictures_whiten_nothing(scene: Scene):
    alike = replace(scene.public, labels=torch.zeros_like(scene.public.labels))
    pixels = scene.splits.test.pixels[:3]
    features = scene.model.target().features(pixels.float() / 255)
    expected = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(as_embedding(replace(scene, public=alike), scene.model)(pixels), expected)


def test_a_picture_in_several_groups_is_looked_at_once(scene: Scene):
    data, seen = scene.splits.train, []

    def embed(pixels):
        seen.append(len(pixels))
        return pixels.flatten(1).float()[:, :7]

    groups = [torch.tensor([5, 2, 2]), torch.tensor([], dtype=torch.long), torch.tensor([9, 5])]
    found = photographs(embed, data, *groups)
    assert seen == [3]
    for photos, rows in zip(found, groups, strict=True):
        assert torch.equal(photos.labels, data.labels[rows])
        assert torch.equal(photos.features, data.pixels[rows].flatten(1).float()[:, :7])
