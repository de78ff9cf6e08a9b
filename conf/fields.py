"""How one setting is declared: default, meaning, bounds and command-line flags in one place."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo


class Group(BaseModel):
    """Base of every settings model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses true and false where a number is meant; pydantic would read 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true or false is not allowed here")
        return value


def setting(
    default: Any, description: str, *, flags: tuple[str, ...] = (), negated: bool = False, **bounds: Any
) -> Any:
    """Declares a setting.

    Args:
        default: the value where no source gives one.
        description: one sentence for the help text and the docs.
        flags: command-line flags that set it; where several are given, the first in this order wins.
        negated: the flag states the opposite of the setting.
        **bounds: pydantic's `ge`, `le`, `gt`, `lt`, `min_length`.
    """
    extra: dict[str, Any] = {"flags": list(flags), "negated": negated}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


@dataclass(frozen=True)
class SettingField:
    """One setting of a settings model, as the command line, the docs and error messages see it."""

    group: str
    name: str
    info: FieldInfo

    @property
    def path(self) -> str:
        """Where it stands in a YAML file: `group.name`."""
        return f"{self.group}.{self.name}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Its command-line flags, the most specific first."""
        return tuple(self._extra.get("flags", ()))

    @property
    def negated(self) -> bool:
        """True when the flag states the opposite of the setting."""
        return bool(self._extra.get("negated", False))

    @property
    def _extra(self) -> dict[str, Any]:
        return self.info.json_schema_extra if isinstance(self.info.json_schema_extra, dict) else {}

    @property
    def allowed(self) -> str:
        """The allowed values in words, e.g. `at least 4` or `one of float32, float16`."""
        kind, limits = type_name(self.info.annotation), self._limits()
        if limits.startswith("one of"):
            return limits
        return f"{kind}, {limits}" if limits else kind

    @property
    def is_bounded(self) -> bool:
        """True when the type alone does not say what is allowed."""
        return bool(self._limits())

    def _limits(self) -> str:
        choices = _choices(self.info.annotation)
        if choices:
            return "one of " + ", ".join(str(choice) for choice in choices)
        words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        bounds = [
            f"{word} {getattr(mark, key)}"
            for mark in self.info.metadata
            for key, word in words.items()
            if getattr(mark, key, None) is not None
        ]
        return " and ".join(bounds)


def fields_of(model: type[BaseModel]) -> Iterator[SettingField]:
    """Yields every setting of a model whose fields are groups of settings."""
    for group, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for name, field in info.annotation.model_fields.items():
                yield SettingField(group, name, field)


def type_name(annotation: Any) -> str:
    """A type as a person reads it: `whole number`, `text`, `list of text`."""
    names = {str: "text", int: "whole number", float: "number", bool: "true/false"}
    if annotation in names:
        return names[annotation]
    inner = [type_name(part) for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    is_sequence = getattr(annotation, "__origin__", None) in (tuple, list)
    return (
        ("list of " if is_sequence else "") + " or ".join(dict.fromkeys(inner)) if inner else str(annotation)
    )


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside an Optional."""
    if getattr(annotation, "__origin__", None) is not None and str(annotation).startswith("typing.Literal"):
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))
