"""Citations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paper:
    """The publication that a method reproduces; reports list the papers of the methods that ran."""

    title: str
    authors: str
    venue: str
    url: str

    def __str__(self) -> str:
        return f"{self.authors} {self.title}. {self.venue}. {self.url}"
