"""Whether tensors that something was made of still hold what they held then."""

from collections.abc import Iterable

from torch import Tensor


class Unchanged:
    """Tells tensors that are the same ones, with the same values in the same place, from all others.

    A tensor that is written to in place counts it, one that `Module.to` moves or converts does not: it stays the same
    object, with other memory. The old memory is kept until this is dropped, so that no other tensor gets its address.

    Args:
        tensors: None of them made in inference mode, where nothing is counted.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._seen = [(tensor, tensor._version, tensor.data_ptr(), tensor.untyped_storage()) for tensor in tensors]

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are those tensors, in that order."""
        now = list(tensors)
        return len(now) == len(self._seen) and all(
            tensor is same and tensor._version == version and tensor.data_ptr() == address
            for tensor, (same, version, address, _) in zip(now, self._seen, strict=True)
        )
