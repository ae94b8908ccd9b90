from dataclasses import replace

import pytest
import torch

from mi_audit.audit.inversions import Inversions, at_most, from_run
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.fisher import InversionFacts
from mi_audit.core.report import AuditReport
from mi_audit.store.images import write_png
from mi_audit.store.results import write_result
from tests.report.sample import audit, comparison


def kept(folder, side=""):
    """Two pictures of each of two classes by each attack of the sample report, under its seeds, and of a control."""
    report = audit()
    base = folder / "images" / side if side else folder / "images"
    for one in report.attacks:
        for seed in one.seeds:
            for label in (0, 3):
                for place in range(2):
                    pixels = torch.full((1, 4, 4), 10 * label + place, dtype=torch.uint8)
                    write_png(base / one.name.replace(":", "-") / f"s{seed}" / f"{label:04d}-{place}.png", pixels)
    return report


def test_reads_the_pictures_of_the_attacks_and_of_no_control(tmp_path):
    report = kept(tmp_path)
    write_result(tmp_path / "result.json", report)
    attacks = [one for one in report.attacks if one.role == "attack"]
    assert len(attacks) < len(report.attacks)
    found = from_run(str(tmp_path), report.targets[0].sha256)
    assert len(found.labels) == 4 * len(attacks)  # of the seed that this model was trained under
    assert (found.pixels[:, 0, 0, 0] // 10).tolist() == found.labels.tolist()
    assert found.facts.attacks == tuple(one.name for one in attacks)
    assert (found.facts.source, found.facts.moments, found.facts.identities) == ("run", 1, 2)
    alone = replace(report, targets=tuple(replace(facts, seed=None) for facts in report.targets))
    write_result(tmp_path / "result.json", alone)
    seeds = {seed for one in report.attacks for seed in one.seeds}
    assert len(from_run(str(tmp_path), report.targets[0].sha256).labels) == 4 * len(attacks) * len(seeds) > 8
    only = from_run(str(tmp_path), report.targets[0].sha256, (attacks[0].name,))
    assert only.facts.attacks == (attacks[0].name,) and len(only.labels) == 4 * len(seeds)


def test_takes_the_side_of_a_comparison_that_the_model_is_on(tmp_path):
    result = comparison()
    kept(tmp_path, "defended")
    write_result(tmp_path / "result.json", result)
    facts = result.after.targets[0]
    assert len(from_run(str(tmp_path), facts.sha256).labels)
    with pytest.raises(DataError, match="got none; repeat that run with --images local"):
        from_run(str(tmp_path), result.before.targets[0].sha256)


def test_refuses_another_model_and_unknown_attacks(tmp_path):
    report: AuditReport = kept(tmp_path)
    write_result(tmp_path / "result.json", report)
    with pytest.raises(DataError, match="expected a run that attacked this model"):
        from_run(str(tmp_path), "f" * 64)
    with pytest.raises(ConfigError, match="got nothing-like-it"):
        from_run(str(tmp_path), report.targets[0].sha256, ("nothing-like-it",))


def test_at_most_takes_evenly_from_all_classes():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2])
    facts = InversionFacts(
        source="attack", run="", attacks=("a",), priors=("p",), weak=False, moments=2, images=14, identities=3,
        accepted=0.5,
    )  # fmt: skip
    found = Inversions(torch.arange(14, dtype=torch.uint8).view(14, 1, 1, 1), labels, facts, ("id",))
    few = at_most(found, 6)
    assert few.labels.bincount().tolist() == [3, 2, 1]
    assert few.pixels.flatten().tolist()[:3] == [0, 3, 6]
    assert few.facts == replace(facts, images=6) and few.ids == ("id",)
    assert at_most(found, 14).labels.equal(labels)
    assert at_most(found, 2).facts.identities == 2
