from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from statsmodels.stats.proportion import proportion_confint
from torch import nn

from mi_audit.audit.identify import chance_floor, identify, natural_order, wilson_low
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import TargetError
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.output_rules import OutputNoise
from mi_audit.store.targets import LoadedModel, load_model, new_model
from mi_audit.train.accuracy import measured_accuracy
from tests import toy


def loaded(net: nn.Module | None = None, **facts) -> LoadedModel:
    classifier = Classifier(net or toy.classifier(), size=8, channels=3, mean=(0.0,), std=(1.0,))
    origins = {"size": "flag", "mean": "default", "std": "default"}
    return LoadedModel(classifier, "toy.safetensors", "py:toy:classifier", "0" * 64, origins=origins, **facts)


def renamed(data: Dataset, names: tuple[str, ...]) -> Dataset:
    return replace(data, classes=names)


def permuted(order: list[int]) -> nn.Module:
    """A network whose output number i is the score of class order[i]."""
    net = toy.classifier()
    with torch.no_grad():
        net[1].weight.copy_(net[1].weight[order])
        net[1].bias.copy_(net[1].bias[order])
    return net


def test_a_right_model_stays_as_declared():
    model = loaded()
    settled, measured = identify(model, toy.dataset(), "cpu")
    assert measured.value == 1.0 and measured.count == 24 and measured.unit == "share"
    assert settled.classifier is model.classifier


def test_the_accuracy_of_an_api_is_that_of_its_answers_and_no_reason_to_doubt_the_model():
    model = loaded(edits=(OutputNoise(deviation=10.0).edit(),))
    settled, measured = identify(model, toy.dataset(), "cpu")
    assert measured == measured_accuracy(settled, toy.dataset(), "cpu") and measured.value < 0.7


def test_outputs_in_natural_order_are_found_by_accuracy():
    names = ("1", "10", "2", "3")  # lexical order; numbered naturally these are 0, 3, 1, 2
    natural = permuted([0, 2, 3, 1])
    settled, measured = identify(loaded(natural, class_order="auto"), renamed(toy.dataset(), names), "cpu")
    assert measured.value == 1.0
    assert settled.class_order == "natural" and settled.classifier.order == (0, 3, 1, 2)
    assert settled.origins["class_order"] == "natural: accuracy lexical 0.250, natural 1.000"


def test_lexical_order_is_kept_when_it_is_right():
    settled, _ = identify(loaded(class_order="auto"), renamed(toy.dataset(), ("1", "10", "2", "3")), "cpu")
    assert settled.class_order == "lexical" and settled.classifier.order is None


def test_a_stated_order_is_applied_and_not_doubted():
    data = renamed(toy.dataset(), ("1", "10", "2", "3"))
    settled, _ = identify(loaded(permuted([0, 2, 3, 1]), class_order="natural"), data, "cpu")
    assert settled.origins["class_order"] == "natural: flag"
    with pytest.raises(TargetError, match="well above chance"):
        identify(loaded(permuted([0, 2, 3, 1]), class_order="lexical"), data, "cpu")


def test_class_names_that_come_with_the_model_decide():
    names = toy.dataset().classes
    model = loaded(permuted([2, 0, 3, 1]), class_names=tuple(names[index] for index in (2, 0, 3, 1)))
    settled, measured = identify(model, toy.dataset(), "cpu")
    assert measured.value == 1.0 and settled.class_order == "class names"
    assert settled.classifier.order == (1, 3, 0, 2)


def test_an_order_that_the_model_brings_is_kept():
    model = loaded(permuted([2, 0, 3, 1])).with_input(order=(1, 3, 0, 2))
    settled, measured = identify(model, renamed(toy.dataset(), ("1", "10", "2", "3")), "cpu")
    assert measured.value == 1.0 and settled.class_order == "as given" and settled.classifier.order == (1, 3, 0, 2)


class Bright(nn.Module):
    """Right only on pixels in [0, 1]; what lies outside is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy.classifier()

    def forward(self, images):
        lost = (images.amin(dim=(1, 2, 3)) < -0.2)[:, None]
        return torch.where(lost, torch.tensor([1.0, 0.0, 0.0, 0.0]), self.net(images))


def test_normalisation_is_found_by_accuracy_unless_stated():
    wrong = loaded(Bright()).with_input(mean=(0.5,), std=(0.5,))
    settled, measured = identify(wrong, toy.dataset(), "cpu")
    assert measured.value == 1.0 and settled.classifier.mean_values == (0.0,)
    assert settled.origins["mean"] == settled.origins["std"] == "accuracy chose normalisation none"
    with pytest.raises(TargetError, match="well above chance"):
        identify(replace(wrong, explicit=frozenset({"mean"})), toy.dataset(), "cpu")


class Sized(nn.Module):
    """Right at 32 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy.classifier()

    def forward(self, images):
        logits = self.net(nn.functional.adaptive_avg_pool2d(images, 8))
        return logits if images.shape[-1] == 32 else torch.zeros_like(logits)


def test_an_input_size_that_was_only_a_default_is_found_by_accuracy():
    model = loaded(Sized())
    with pytest.raises(TargetError, match="well above chance"):
        identify(model, toy.dataset(), "cpu")
    guessed = replace(model, origins={**model.origins, "size": "timm default"})
    settled, _ = identify(guessed, toy.dataset(), "cpu")
    assert settled.classifier.size == 32 and settled.origins["size"] == "accuracy chose 32 px"


def test_a_model_at_chance_stops_with_everything_that_was_tried():
    model = loaded(permuted([1, 2, 3, 0]))
    with pytest.raises(TargetError) as error:
        identify(model, renamed(toy.dataset(), ("a", "b", "c", "d")), "cpu")
    message = str(error.value)
    assert error.value.exit_code == 3 and "\n" not in message
    for part in (
        "above 0.500",
        "accuracy 0.000 on 24 images",
        "normalisation ImageNet",
        "--arch",
        "--class-order",
        "--labels",
    ):
        assert part in message


def test_another_number_of_classes_is_refused():
    five = toy.dataset()
    with pytest.raises(
        TargetError, match=r"expected a model of the 5 classes in toy, got 4 outputs from toy.safetensors"
    ):
        identify(loaded(), renamed(five, (*five.classes, "centre")), "cpu")


def test_no_images_are_no_evidence():
    with pytest.raises(TargetError, match="expected images in toy"):
        identify(loaded(), toy.dataset().select(torch.zeros(0, dtype=torch.int64)), "cpu")


def test_one_lucky_image_is_not_well_above_chance():
    with pytest.raises(TargetError, match=r"accuracy 1\.000 on 2 images"):
        identify(loaded(), toy.dataset().select(torch.tensor([0, 23])), "cpu")


def test_architectures_of_the_same_tensors_that_do_equally_well_need_a_flag(tmp_path):
    fresh = new_model("timm:resnet18", num_classes=4, channels=3, size=32, mean=(0.5,), std=(0.5,), seed=0)
    save_file(fresh.classifier.net.state_dict(), tmp_path / "x.safetensors")
    model = load_model(str(tmp_path / "x.safetensors"), size=32, mean=(0.5,), std=(0.5,))
    with pytest.raises(
        TargetError, match=r"--arch torchvision:resnet18 0.\d+.*--arch built-in:resnet18-small|well above"
    ):
        identify(model, toy.dataset(2), "cpu")


def test_data_choose_between_architectures_of_the_same_tensors(monkeypatch):
    right = loaded()
    wrong = replace(loaded(permuted([1, 2, 3, 0])), arch="a", alternatives=("b",))
    monkeypatch.setattr(
        LoadedModel, "as_arch", lambda self, arch: replace(right, arch=arch, alternatives=self.alternatives)
    )
    settled, _ = identify(wrong, toy.dataset(), "cpu")
    assert settled.arch == "b" and settled.alternatives == () and settled.origins["arch"] == "accuracy chose b"


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("1", "10", "2"), (0, 2, 1)),
        (("a1", "a10", "a9", "ab"), (0, 2, 1, 3)),
        (("B", "a"), (1, 0)),
        (("n02", "n1"), (1, 0)),
        (("x",), (0,)),
    ],
)
def test_natural_order(names, order):
    assert natural_order(names) == order


def test_natural_order_is_that_of_timm():
    from timm.utils.misc import natural_key

    names = tuple(sorted({"s1", "s10", "S2", "2", "10", "a", "a1b2", "a1b10", "a01c"}))
    ranked = sorted(names, key=natural_key)
    assert natural_order(names) == tuple(ranked.index(name) for name in names)


def test_the_floor_is_twice_chance_or_the_largest_class():
    assert chance_floor(torch.arange(10), 10) == pytest.approx(0.2)
    assert chance_floor(torch.tensor([0, 1]), 2) == pytest.approx(0.6)
    assert chance_floor(torch.tensor([0] * 9 + [1, 2, 3]), 4) == pytest.approx(0.75)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bound_agrees_with_statsmodels(case):
    hits, n = case
    low, _ = proportion_confint(hits, n, alpha=0.001, method="wilson")
    assert wilson_low(hits / n, n) == pytest.approx(low, abs=1e-5)  # the normal quantile has five figures


def test_wilson_bound_by_hand():
    assert wilson_low(1.0, 24) == pytest.approx(24 / (24 + 3.2905**2), rel=1e-6)
    assert wilson_low(0.0, 24) == pytest.approx(0.0, abs=1e-12)
