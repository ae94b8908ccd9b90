"""How many images are decoded at once, from memory numbers that were made up."""

from dataclasses import replace

import pytest
import torch

from mi_audit.attacks.gmi import GMI
from mi_audit.audit import batching
from mi_audit.audit.attack import run_attack
from mi_audit.audit.batching import batch_of, bytes_per_image, chosen, default_batch, fitting, kept_batch, search_step
from mi_audit.core.errors import PriorTooWeak
from mi_audit.core.prior import AssistedPrior, CriticPrior, Surrogates
from mi_audit.nn.classifier import Classifier
from mi_audit.store import memory
from mi_audit.store.runs import RunFolder
from tests.toy import ToyPrior
from tests.world import digit_plan, judged_once

GIB = 2**30


def classifier(size: int = 2) -> Classifier:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size * size, 4))
    return Classifier(net, size=size, channels=3, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("free", "each", "batch"),
    [
        (None, 10, 512),  # unknown
        (10_000, None, 512),
        (10_240, 10, 512),  # half is 5120: exactly 512
        (10_239, 10, 256),  # one byte less: 511 of them, down to a power of two
        (300, 10, 8),  # 15
        (320, 10, 16),
        (10, 10, 1),  # not even one
        (0, 10, 1),
    ],
)
def test_half_the_free_memory_holds_a_power_of_two_of_images(free: int | None, each: int | None, batch: int):
    assert fitting(512, free, each) == batch


def test_a_default_that_is_no_power_of_two_is_kept_when_it_fits():
    assert fitting(100, 2000, 10) == 100 and fitting(100, 1999, 10) == 64


def test_memory_per_image_is_what_two_more_rows_take_after_a_warming_pass():
    seen = []

    def peak(rows: int) -> int:
        seen.append(rows)
        return 1000 + 70 * rows + (5000 if len(seen) == 1 else 0)  # the first pass builds what stays

    assert bytes_per_image(peak) == 70 and seen == [2, 2, 4]
    assert bytes_per_image(lambda rows: 1000 + rows // 4) == 1  # half a byte is one
    assert bytes_per_image(lambda _rows: 1000) is None


def test_a_device_too_full_for_the_measurement_says_nothing_and_other_errors_are_not_swallowed():
    def full(rows: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(rows: int) -> int:
        raise RuntimeError("shapes do not match")

    assert bytes_per_image(full) is None
    with pytest.raises(RuntimeError, match="shapes"):
        bytes_per_image(broken)


def test_a_wanted_number_is_taken_as_it_is_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: pytest.fail("asked"))
    assert batch_of(7, "cpu", 64, classifier(), ToyPrior()) == 7
    assert chosen(7, 32) == 7 and chosen("auto", 32) == 32


@pytest.mark.parametrize(
    ("size", "free", "batch"),
    [
        (64, 2 * GIB, 32),  # half of it holds 32 images of 512 MiB / 16
        (64, 2 * GIB - 1, 16),
        (128, 2 * GIB, 8),  # 512 MiB / 4 each
        (128, GIB // 2, 2),
        (256, 8 * GIB, 8),
        (256, 7 * GIB, 4),
        (64, None, 32),
    ],
)
def test_a_processor_takes_what_its_caches_hold_unless_memory_is_short(monkeypatch, size, free, batch):
    monkeypatch.setattr(memory, "available", lambda: free)
    assert batch_of("auto", "cpu", size, classifier(), ToyPrior()) == batch


def test_a_target_that_is_fed_larger_images_takes_their_memory(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2 * GIB)
    assert batch_of("auto", "cpu", 64, classifier(128), ToyPrior()) == 8  # 1 GiB of 128 MiB each


def test_an_accelerator_takes_what_was_measured_over_what_is_free(monkeypatch):
    monkeypatch.setattr(batching, "_peak", lambda _device, rows, _model, _prior: 100 + 50 * rows)
    monkeypatch.setattr(batching, "_free", lambda _device: 10_000)
    assert batch_of("auto", "cuda", 64, classifier(), ToyPrior()) == 64  # 5000 / 50 = 100
    monkeypatch.setattr(batching, "_free", lambda _device: 10**9)
    assert batch_of("auto", "cuda:1", 64, classifier(), ToyPrior()) == default_batch("cuda", 64) == 512
    assert batch_of("auto", "cuda", 128, classifier(), ToyPrior()) == 128
    assert batch_of("auto", "mps", 64, classifier(), ToyPrior()) == 512


def test_a_measurement_on_cuda_gives_back_what_it_took_even_when_it_fails(monkeypatch):
    given, peaks = [], [100, 100, 200]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(len(peaks)))
    monkeypatch.setattr(batching, "_peak", lambda *_: peaks.pop(0))
    monkeypatch.setattr(batching, "_free", lambda _device: 10**9)
    for device in ("cpu", "mps"):
        batch_of("auto", device, 64, classifier(), ToyPrior())
    assert not given
    batch_of("auto", "cuda", 64, classifier(), ToyPrior())
    assert given == [0]  # once, when all three passes were done
    with pytest.raises(IndexError):
        batch_of("auto", "cuda", 64, classifier(), ToyPrior())
    assert given == [0, 0]


def test_free_memory_counts_what_this_process_holds_and_does_not_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 20)
    assert batching._free("cuda") == 130


def test_a_measured_step_goes_through_every_network_and_moves_no_random_numbers():
    passed, net = [], classifier()
    before = torch.random.get_rng_state()
    net.register_full_backward_hook(lambda *_: passed.append("target"))

    def noted(name):
        def network(images):
            images.register_hook(lambda _gradient: passed.append(name))
            return images.flatten(1) + torch.rand(1)

        return network

    class WithCritic(ToyPrior, CriticPrior):
        def realism(self, images):
            return noted("critic")(images).sum(dim=1)

    students = Surrogates((noted("student"),), torch.zeros(1), torch.ones(1))
    search_step("cpu", 3, net.train(), AssistedPrior(WithCritic(), students))
    assert {"target", "student", "critic"} <= set(passed) and net.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_first_choice_of_a_run_is_kept(tmp_path):
    def never() -> int:
        return pytest.fail("asked")

    with RunFolder(tmp_path / "run") as folder:
        assert kept_batch("auto", folder, "gmi on cpu", lambda: 16, 32) == 16
        assert kept_batch("auto", folder, "ppa on cpu", lambda: 4, 32) == 4
        assert kept_batch(7, folder, "gmi on cpu", never, 32) == 7
    with RunFolder(tmp_path / "run") as folder:
        assert kept_batch("auto", folder, "gmi on cpu", never, 32) == 16
        assert kept_batch("auto", folder, "ppa on cpu", never, 32) == 4
        folder.forget_jobs()
        assert kept_batch("auto", folder, "gmi on cpu", lambda: 8, 32) == 8


@pytest.mark.parametrize("text", ["", "{", "[]", '{"gmi": 0}', '{"gmi": true}', '{"gmi": "8"}', "\xff"])
def test_a_damaged_choice_is_made_again(tmp_path, text):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_text("batches.json", text)
        assert kept_batch("auto", folder, "gmi", lambda: 8, 32) == 8 == kept_batch("auto", folder, "gmi", lambda: 9, 32)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, ZeroDivisionError, MemoryError, PriorTooWeak])
def test_a_choice_that_fails_is_not_kept_and_fails_no_more_than_the_jobs_would(tmp_path, error):
    def broken() -> int:
        raise error("shapes do not match")

    with RunFolder(tmp_path / "run") as folder:
        assert kept_batch("auto", folder, "gmi", broken, 32) == 32 and not folder.read_batches()


def test_jobs_that_are_done_later_decode_as_many_images_at_once(digits, cache, tmp_path, monkeypatch):
    plan = digit_plan(digits, tmp_path / "run", cache)
    plan = replace(
        plan, seeds=1, classes="0", attacks=plan.attacks[:1], controls=("random",), metrics=("attack-accuracy",)
    )
    sizes, run = [], GMI.run

    def watched(self, target, prior, classes, about):
        sizes.append(about.batch_size)
        return run(self, target, prior, classes, about)

    monkeypatch.setattr(GMI, "run", watched)
    judged_once(monkeypatch)
    for free in (GIB, 2**24):  # at 32 pixels an image counts as 8 MiB: the second time there was room for one
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        run_attack(plan)
        for file in (plan.out / "jobs").glob("gmi*"):
            file.unlink()
    run_attack(replace(plan, fresh=True))
    run_attack(replace(plan, fresh=True, batch_size=3))
    run_attack(plan)
    assert sizes == [32, 32, 1, 3]
    assert not (plan.out / "batches.json").exists()  # nothing was left to do, so nothing was chosen
    next((plan.out / "jobs").glob("gmi*")).write_bytes(b"damaged")
    run_attack(plan)
    assert sizes == [32, 32, 1, 3, 1] and (plan.out / "batches.json").exists()

    def untold() -> int:
        raise MemoryError

    monkeypatch.setattr(memory, "available", untold)
    run_attack(replace(plan, fresh=True))
    assert sizes[5:] == [32]
