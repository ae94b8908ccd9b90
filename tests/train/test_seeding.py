import torch

from mi_audit.train.seeding import seeded, stream


def test_a_stream_depends_on_seed_and_position():
    draws = [torch.rand(4, generator=stream(*place)) for place in [(0, "a", 1), (0, "a", 1), (0, "a", 2), (1, "a", 1)]]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_seeded_numbers_repeat_and_the_global_state_comes_back():
    before = torch.get_rng_state()
    with seeded("cpu", 0, "x"):
        first = torch.rand(3)
    with seeded("cpu", 0, "x"):
        assert torch.equal(torch.rand(3), first)
    with seeded("cpu", 1, "x"):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
