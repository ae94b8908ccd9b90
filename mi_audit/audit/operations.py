"""How the operations of a run are carried out, where it can change what comes out."""

from collections.abc import Iterator
from contextlib import contextmanager

from mi_audit.audit.plan import Plan
from mi_audit.nn.compiled import compiles, compiling
from mi_audit.nn.deterministic import deterministic


@contextmanager
def carried_out(plan: Plan, device: str) -> Iterator[None]:
    """Compile the networks that are frozen inside the block and refuse what is not deterministic, as the plan wants."""
    with deterministic(plan.deterministic), compiling(compiles(plan.compile, device)):
        yield


def marks(plan: Plan, device: str) -> tuple[str, ...]:
    """What of it the id of a job has to say; nothing as long as nothing is switched on."""
    polished = plan.early_stop and plan.precision == "bf16"  # latents left without exact steps once
    on = {"compiled": compiles(plan.compile, device), "deterministic": plan.deterministic, "polished": polished}
    return tuple(name for name, wanted in on.items() if wanted)
