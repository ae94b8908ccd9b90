import pytest
import torch

from mi_audit.core.errors import DataError
from mi_audit.nn.distances import nearest_of_class


def test_looks_at_the_own_class_only():
    features = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    references = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    near = nearest_of_class(features, torch.tensor([0, 1, 0]), references, torch.tensor([0, 1, 0]))
    assert near.tolist() == [1.0, 25.0, 4.0]


def test_keeps_small_distances_between_large_features():
    features = torch.full((2, 64), 1000.0)
    near = nearest_of_class(features, torch.tensor([0, 0]), features[:1] + 0.125, torch.tensor([0]))
    assert near.tolist() == [1.0, 1.0]


def test_refuses_a_class_without_private_images():
    with pytest.raises(DataError, match="private images of class 2, got none"):
        nearest_of_class(torch.zeros(1, 3), torch.tensor([2]), torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
