"""How many images are decoded at once: what caches of a processor hold, or the free memory of an accelerator."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mi_audit.audit.executor import ENDURED
from mi_audit.core.prior import AssistedPrior, CriticPrior, Prior
from mi_audit.core.run import is_out_of_memory
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.compiled import compiling
from mi_audit.nn.modes import evaluating
from mi_audit.store import memory
from mi_audit.store.runs import RunFolder
from mi_audit.train.seeding import seeded

BatchSize = int | Literal["auto"]
SHARE = 0.5  # of the free memory; the rest is for views, the state of optimisers and other programs
PROBES = (2, 4)  # rows of the passes that memory per image is measured with
AT_256 = 512 * 2**20  # bytes per image of 256 pixels on a processor, generously: a StyleGAN2 with a ResNet takes 410 MB


def default_batch(device: str, size: int) -> int:
    """Images decoded at once, at most: what the caches of a processor hold, or what keeps an accelerator busy."""
    if device.startswith("cpu"):
        return 32 if size <= 64 else 8
    return 512 if size <= 64 else 128


def chosen(wanted: BatchSize, usual: int) -> int:
    """The batch size that was wanted; `auto` is the usual one."""
    return usual if wanted == "auto" else wanted


def batch_of(wanted: BatchSize, device: str, size: int, model: Classifier, prior: Prior) -> int:
    """The batch size that was wanted; `auto` is the default of the device, or what half its free memory holds.

    Args:
        wanted: A number of images, or `auto`.
        device: Where the search runs.
        size: Side of its images in pixels.
        model: The target.
        prior: What the search decodes by.
    """
    if wanted != "auto":
        return wanted
    most, kind = default_batch(device, size), torch.device(device).type
    if kind == "cpu":
        return fitting(most, memory.available(), round(AT_256 * (max(size, model.size) / 256) ** 2))
    if kind == "cuda":
        try:
            each = bytes_per_image(lambda rows: _peak(device, rows, model, prior))
        finally:
            torch.cuda.empty_cache()  # the jobs may be done in other processes, which need what this one would hold
        return fitting(most, _free(device), each)
    return most


def kept_batch(wanted: BatchSize, folder: RunFolder, key: str, choose: Callable[[], int], usual: int) -> int:
    """The batch size that a run works with until it ends, however often it is resumed: memory may differ by then.

    Args:
        wanted: A number of images is taken as it is and not kept.
        folder: Of the run, where the first choice is kept.
        key: What the choice is for, and where.
        choose: Makes a choice when there is none. What fails in it fails in the jobs, too, if they do the same at all;
            so it is theirs to report.
        usual: Taken, and not kept, when the choice failed.
    """
    if wanted != "auto":
        return wanted
    known = folder.read_batches()
    if key not in known:
        try:
            known[key] = choose()
        except ENDURED:
            return usual
        folder.write_batches(known)
    return known[key]


def fitting(most: int, free: int | None, each: int | None) -> int:
    """`most`, or the largest power of two below it of which images of `each` bytes fit into half of `free`.

    Powers of two, so that small changes of the free memory change nothing. Never less than one.
    """
    if free is None or each is None:
        return most
    room = int(SHARE * free) // each
    return most if room >= most else 1 << max(0, room.bit_length() - 1)


def bytes_per_image(peak: Callable[[int], int]) -> int | None:
    """Memory that every further row takes, from the peaks of two small numbers of rows; what is there anyway cancels.

    Args:
        peak: The largest number of bytes held during a step of so many rows.

    Returns:
        None when it cannot be told.
    """
    few, more = PROBES
    try:
        peak(few)  # the first pass also builds what stays
        least, most = peak(few), peak(more)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    return -(-(most - least) // (more - few)) if most > least else None


def _free(device: str) -> int:
    """What the device has left, with what this process holds of it and does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _peak(device: str, rows: int, model: Classifier, prior: Prior) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    search_step(device, rows, model, prior)
    return torch.cuda.max_memory_allocated(device)


def search_step(device: str, rows: int, model: Classifier, prior: Prior) -> None:
    """One step of a search in single precision: latents through generator, target, students and critic, and back.

    No random generator moves.
    """
    space, critic, judges = prior.search, prior, list[Callable[[Tensor], Tensor]]([model])
    if isinstance(prior, AssistedPrior):
        critic = prior.prior
        judges += prior.surrogates.networks
    with seeded(device, 0, "batch"), compiling(False), evaluating(model), torch.enable_grad():
        latents = space.draw(torch.zeros(rows, space.width, device=device)).detach().requires_grad_()
        images = space.decode(latents)
        scores = [network(images).float().sum() for network in judges]
        if isinstance(critic, CriticPrior):
            scores.append(critic.realism(images).float().sum())
        torch.autograd.grad(torch.stack(scores).sum(), latents)
