from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mi_audit.core.random import Streams
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.constants import beside
from mi_audit.nn.erasing import Erasing
from mi_audit.nn.stylegan2 import doubled, low_pass
from mi_audit.nn.views import Chain, Jitter, RandomCrop, Rotation, centre_crop


class Copies(TorchDispatchMode):
    """Counts what comes from the processor to another device, for which the processor waits when memory is pageable."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        if isinstance(made, Tensor) and made.device.type != "cpu":
            aten, came = torch.ops.aten, [part.device.type for part in args if isinstance(part, Tensor)]
            listed = function == aten.lift_fresh.default  # a list became a tensor on the device
            self.count += listed or (function in (aten._to_copy.default, aten.copy_.default) and "cpu" in came)
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_have_the_format_of_their_neighbour(dtype):
    like = torch.zeros(2, 3, dtype=dtype)
    assert beside(like, (0.1, 2.0, -3.0)).equal(torch.tensor([0.1, 2.0, -3.0], dtype=dtype))


IMAGES = torch.rand(2, 3, 8, 8, device="meta")
STREAMS = Streams(torch.zeros(2, dtype=torch.long, device="meta"))
LAYERS = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
GREY = Classifier(LAYERS, size=8, channels=1, mean=(0.5,), std=(0.5,)).to("meta")
STEPS = {
    "views": lambda: Chain((RandomCrop((0.8, 1.0), (0.9, 1.1)), Jitter(), Rotation(), Erasing()))(IMAGES, STREAMS, 3),
    "grey view": lambda: Erasing()(IMAGES[:, :1], STREAMS, 3),
    "middle": lambda: centre_crop(IMAGES, 0.5),
    "grey target": lambda: GREY(IMAGES),
    "filters": lambda: doubled(low_pass(IMAGES, 1)),
    "noise": lambda: STREAMS.branches(2).normal("x", 4, step=1),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_needs_is_made_where_it_is_needed(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no device without numbers
    with Copies() as copied:
        result = STEPS[name]()
    assert result.device.type == "meta" and copied.count == 0


def test_a_list_that_is_sent_is_noticed():
    with Copies() as copied:
        IMAGES.new_tensor([1.0, 2.0])
        torch.tensor([1.0]).to("meta")
    assert copied.count == 2
