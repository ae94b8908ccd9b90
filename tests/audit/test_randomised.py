"""A target that draws random numbers in eval mode must not make the result depend on what ran before."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mi_audit.audit import attack
from mi_audit.audit.attack import run_attack
from mi_audit.audit.runner import Runner
from mi_audit.core.target import QueryLedger, TorchTarget
from mi_audit.store.targets import LoadedModel
from tests.world import digit_plan


class Noise(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits + 0.5 * torch.randn_like(logits)


def noisy(model: LoadedModel, ledger: QueryLedger | None = None, *, hasten: bool = False) -> TorchTarget:
    del hasten
    net, audited = model.classifier, model.arch == "built-in:cnn"
    return TorchTarget(nn.Sequential(net, Noise()) if audited else net, net.num_classes, net.head, ledger)


def content(out: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in [*sorted(out.glob("jobs/*")), out / "result.json"]}


def leaving_numbers_alone(call):
    """`call`, checked not to move the global generator that others draw from."""

    def checked(*given, **named):
        state = torch.get_rng_state()
        returned = call(*given, **named)
        assert torch.equal(torch.get_rng_state(), state)
        return returned

    return checked


def test_a_random_target_gives_the_same_bytes_whether_or_not_earlier_jobs_were_done(
    digits: Path, cache: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(LoadedModel, "target", noisy)
    monkeypatch.setattr(Runner, "measured", leaving_numbers_alone(Runner.measured))
    monkeypatch.setattr(attack, "check", leaving_numbers_alone(attack.check))
    plan = replace(digit_plan(digits, tmp_path / "run", cache), seeds=1, metrics=("attack-accuracy",))
    run_attack(plan)
    whole = content(tmp_path / "run")
    for kept in ("gmi-s0-c0000-*", "ppa-s0-c0003-*"):
        left = list((tmp_path / "run/jobs").glob(kept))
        assert len(left) == 1
        for file in (tmp_path / "run/jobs").iterdir():
            if file not in left:
                file.unlink()
        run_attack(plan)
        assert content(tmp_path / "run") == whole
