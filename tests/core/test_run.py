import pytest
import torch

from mi_audit.core.errors import OutOfMemory
from mi_audit.core.run import Run


class Memory:
    """A device that holds `room` rows, and remembers what it was asked for."""

    def __init__(self, room, error=None):
        self.room, self.asked = room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, rows):
        self.asked.append(rows.tolist())
        if len(rows) > self.room:
            raise self.error
        return rows * 10


def test_maps_chunks_of_at_most_the_batch_size_in_order():
    device = Memory(room=99)
    assert Run(batch_size=3).map(device, torch.arange(7)).tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert device.asked == [[0, 1, 2], [3, 4, 5], [6]]


def test_cuts_every_column_alike():
    run = Run(batch_size=2)
    streams = run.streams(torch.arange(5), torch.zeros(5, dtype=torch.long))
    seen = run.batches(
        lambda rows, column, keys: (rows.start, column.tolist(), keys), range(5), torch.arange(5), streams
    )
    assert [(start, column) for start, column, _ in seen] == [(0, [0, 1]), (2, [2, 3]), (4, [4])]
    assert torch.equal(torch.cat([keys.keys for *_, keys in seen]), streams.keys)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_halves_a_chunk_that_does_not_fit_and_keeps_finished_ones(error):
    device = Memory(room=2, error=error)
    assert Run(batch_size=8).map(device, torch.arange(6)).tolist() == [0, 10, 20, 30, 40, 50]
    assert device.asked == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0], [1], [2], [3], [4], [5]]


def test_a_short_last_chunk_is_halved_by_its_own_length():
    device = Memory(room=4)
    shrinking = Memory(room=1)

    def half_way(rows):
        return (device if rows[0] < 4 else shrinking)(rows)

    Run(batch_size=4).map(half_way, torch.arange(6))
    assert shrinking.asked == [[4, 5], [4], [5]]


def test_says_so_when_not_even_one_row_fits():
    with pytest.raises(OutOfMemory, match="expected one image to fit the device"):
        Run(batch_size=4).map(Memory(room=0), torch.arange(6))


def test_other_errors_are_not_mistaken_for_memory():
    with pytest.raises(RuntimeError, match="shapes differ"):
        Run().map(Memory(room=0, error=RuntimeError("shapes differ")), torch.arange(6))


def test_streams_depend_on_the_seed():
    row = torch.zeros(1, dtype=torch.long)
    assert not torch.equal(Run(seed=0).streams(row, row).keys, Run(seed=1).streams(row, row).keys)
