"""The contract of an attack."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar, get_args, get_origin

from mi_audit.core.paper import Paper
from mi_audit.core.prior import Prior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import LabelOnlyTarget
from mi_audit.core.types import Labels

Sees = TypeVar("Sees", bound=LabelOnlyTarget)
Knows = TypeVar("Knows", bound=Prior)


class Attack(ABC, Generic[Sees, Knows]):
    """A frozen dataclass of hyper-parameters with one method. Holds no model, device or state.

    `Attack[Sees, Knows]` is the threat model: the access to the target and the knowledge of images
    that the method assumes. The engine hands over that much and no more.

    Attributes:
        paper: The publication of the method.
        smoke: The smallest settings that still work, for tests.
        quick: Laptop-size settings, used by `--profile quick`.
        prior: Name of the recipe whose prior the attack was published with.
        cost: One line on the work per final image under the published defaults.
        deviations: Where this differs from the published code, and why; printed by `mi-audit info`.
        ranks: Whether it ranks its candidates by `nn.robust_search`, which `--halving` shortens.
        version: Raised whenever the same settings would give other images; part of the job id.
    """

    paper: ClassVar[Paper]
    smoke: ClassVar[Mapping[str, object]]
    quick: ClassVar[Mapping[str, object]]
    prior: ClassVar[str]
    cost: ClassVar[str]
    deviations: ClassVar[tuple[str, ...]] = ()
    ranks: ClassVar[bool] = False
    version: ClassVar[int] = 1

    @abstractmethod
    def run(self, target: Sees, prior: Knows, classes: Labels, run: Run) -> Reconstructions:
        """Reconstruct every class of `classes`, the same number of images each, ordered by class.

        Raises:
            Diverged: A loss became NaN or infinite.
            PriorTooWeak: The prior cannot reach a class.
        """

    @classmethod
    def threat_model(cls) -> tuple[type[LabelOnlyTarget], type[Prior]]:
        """The access and the prior that the class header declares."""
        sees, knows = get_args(cls.__orig_bases__[0])  # type: ignore[attr-defined]
        return sees, get_origin(knows) or knows  # an AssistedPrior[...] is an AssistedPrior

    @property
    def adaptive_to(self) -> tuple[str, ...]:
        """Defenses that these settings are known to get around, by command-line name."""
        return ()

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of everything to fit on public images first: the prior, and for an `AssistedPrior` the surrogates."""
        return (self.prior,)

    @property
    def sample_steps(self) -> int:
        """Gradient steps times latents per class, for progress and time estimates."""
        return 0
