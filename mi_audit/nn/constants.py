"""Small constants beside the tensors they are used with."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def beside(like: Tensor, values: Sequence[float]) -> Float[Tensor, " values"]:
    """`values` in the format and on the device of `like`, written there: sending a list there waits for the device."""
    return torch.stack([like.new_full((), value) for value in values])
