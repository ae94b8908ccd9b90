"""What the tables of settings are made of: kinds of values that flags, the environment and TOML spell alike."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema


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


def _automatic_or_count(value: object) -> object:
    """A whole number from 1, or the word."""
    try:
        number = value if value == "auto" or isinstance(value, bool | float) else int(str(value))
    except ValueError:
        number = None
    if number == "auto" or (type(number) is int and number >= 1):
        return number
    raise ValueError("auto or a whole number from 1")


AutomaticCount = Annotated[
    int | Literal["auto"],
    PlainValidator(_automatic_or_count),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]


class Table(BaseModel):
    """Frozen, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
