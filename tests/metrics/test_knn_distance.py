import pytest
import torch

from mi_audit.core.errors import DataError
from mi_audit.metrics.knn_distance import KNNDistance
from tests.metrics.evidence import evidence


def measure(found):
    (measurement,) = KNNDistance().measure(found)
    return measurement


def test_is_the_mean_squared_distance_to_the_nearest_private_image_of_the_class():
    features = torch.eye(8)[[0, 1]] * torch.tensor([[3.0], [1.0]])
    found = measure(evidence([0, 1], features=features))
    assert (found.name, found.value, found.count, found.counted) == ("knn_l2sq_min", 2.0, 2, "images")
    assert [(row.label, row.value) for row in found.per_class] == [(0, 4.0), (1, 0.0)]
    assert found.interval is not None and (found.interval.low, found.interval.high) == (0.0, 4.0)
    assert found.leak_grows is False


def test_another_class_that_is_nearer_does_not_count():
    assert measure(evidence([0, 0], features=torch.eye(8)[[1, 2]])).value == pytest.approx(2.0)


def test_the_protocol_names_reference_dimension_and_scale():
    assert measure(evidence([0, 1])).protocol == "knn_l2sq_min/image/all/none@toy-00000000#train-d8-raw"


def test_a_feature_that_is_not_finite_gives_a_reason_instead_of_a_value():
    found = measure(evidence([0, 1], features=torch.full((2, 8), torch.inf)))
    assert (found.value, found.interval, found.reason) == (None, None, "a feature is not finite")


def test_one_identity_has_no_interval():
    found = measure(evidence([3, 3]))
    assert found.value == 0.0 and found.interval is None and found.reason is not None


def test_a_class_without_private_images_is_refused():
    with pytest.raises(DataError, match="class 0"):
        private = evidence([0]).private
        measure(evidence([0], private=private.select(torch.arange(1, 8)), private_features=torch.eye(8)[1:]))
