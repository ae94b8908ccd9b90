import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.nn.pseudo_labels import reuse, top_n

SCORES = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])


def test_every_class_takes_its_surest_images_in_order():
    rows, labels = top_n(SCORES, 2)
    assert rows.tolist() == [0, 1, 2, 1] and labels.tolist() == [0, 0, 1, 1]


def test_images_that_serve_two_classes_are_counted():
    rows, _ = top_n(SCORES, 2)
    assert reuse(rows).item() == 0.25  # image 1 stands for both
    assert reuse(torch.tensor([3, 1])).item() == 0.0


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9))
def test_there_are_as_many_rows_per_class_as_asked_for_or_as_there_are(images, classes, count):
    scores = torch.rand(images, classes, generator=torch.Generator().manual_seed(images))
    rows, labels = top_n(scores, count)
    assert len(rows) == classes * min(count, images)
    assert torch.bincount(labels).tolist() == [min(count, images)] * classes
