import torch
from torch import nn

from mi_audit.nn.unchanged import Unchanged


def test_the_same_weights_are_unchanged_and_others_in_their_place_are_not():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    seen = Unchanged([first, second])
    assert seen.holds([first, second])
    assert not seen.holds([first]) and not seen.holds([second, first])
    assert not seen.holds([first, nn.Parameter(second.data)])


def test_weights_that_are_written_to_have_changed():
    layer = nn.Linear(2, 2).requires_grad_(False)
    seen = Unchanged(layer.parameters())
    layer.load_state_dict(layer.state_dict())
    assert not seen.holds(layer.parameters())


def test_weights_that_are_moved_have_changed_although_they_are_the_same_objects():
    layer = nn.Linear(2, 2)
    weight, version = layer.weight, layer.weight._version
    seen = Unchanged(layer.parameters())
    layer.double()
    assert layer.weight is weight and weight._version == version
    assert not seen.holds(layer.parameters())


def test_the_address_of_weights_that_were_given_away_is_not_used_again():
    weight = nn.Parameter(torch.ones(1000))
    seen = Unchanged([weight])
    for value in range(2, 20):
        weight.data = torch.full((1000,), float(value))
        assert not seen.holds([weight])
