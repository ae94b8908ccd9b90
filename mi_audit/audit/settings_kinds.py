"""What the tables of settings are made of: kinds of values that flags, the environment and TOML spell alike."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _split(value: object) -> object:
    """A comma-separated text as a list, so that flags, the environment and TOML lists are the same setting."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split)]
Whole = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1)]
Share = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=0)]
Rate = Annotated[float, BeforeValidator(_refuse_bool), Field(gt=0)]
Portion = Annotated[float, BeforeValidator(_refuse_bool), Field(gt=0, le=1)]
Chance = Annotated[float, BeforeValidator(_refuse_bool), Field(gt=0, lt=1)]


class Table(BaseModel):
    """Frozen, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
