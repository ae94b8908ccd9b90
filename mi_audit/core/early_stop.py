"""When a latent may leave a gradient search before the last step, and the ledger of the steps that were taken."""

from dataclasses import dataclass

from mi_audit.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """A latent leaves a search once its identity loss has practically ceased to fall.

    The rule compares a loss with its own past, because methods minimise losses of different scale and origin: a limit
    in the units of cross-entropy means nothing for a margin or a hyperbolic distance. Adding a constant to a loss or
    multiplying it by one changes no decision. Progress counts against the length of the whole search, not against a
    step, so that long searches of small steps are not cut off.

    Attributes:
        window: Steps between two looks at the losses, as a share of all steps.
        least: Fewest steps between two looks.
        tolerance: Least progress from one window to the next, as a share of all progress since the first window.
        looks: Windows in a row with less progress than that, after which a latent leaves.

    Raises:
        ConfigError: A share is not between 0 and 1, or a count is below 1.
    """

    window: float = 0.05
    least: int = 10
    tolerance: float = 0.01
    looks: int = 2

    def __post_init__(self) -> None:
        if not (0 < self.window < 1 and 0 < self.tolerance < 1) or min(self.least, self.looks) < 1:
            raise ConfigError(
                f"expected window and tolerance between 0 and 1, least and looks >= 1, got {self.window}, "
                f"{self.tolerance}, {self.least}, {self.looks}; correct them"
            )


@dataclass(frozen=True, slots=True)
class Taken:
    """How many steps rows of one search went, beside how many they could have gone.

    Attributes:
        stage: Name of the search.
        asked: Steps of the whole search.
        taken: Steps that were taken.
        whole: Why no row of it may stop early; empty when it may.
    """

    stage: str
    asked: int
    taken: int
    whole: str = ""
