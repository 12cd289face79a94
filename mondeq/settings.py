"""Settings: frozen dataclasses of plain values, each checked when it is made. Files and command line are made of them.

A field is declared with the rule that its values keep: `features: int = setting(Whole(1), help="width of the state")`.
"""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field
from typing import Any, Self

from mondeq import values
from mondeq.errors import ConfigError

__all__ = [
    "NONNEGATIVE",
    "POSITIVE",
    "SHARE",
    "Choice",
    "Mapping",
    "NoSettings",
    "Optional",
    "Real",
    "Rule",
    "Settings",
    "Several",
    "Text",
    "Truth",
    "Whole",
    "number",
    "setting",
]

_LARGEST = 2**63 - 1  # torch counts entries in int64, and takes no larger seeds


class Rule(ABC):
    """What values a setting may have.

    Attributes:
        needed: What a value has to be, for messages.
    """

    needed: str

    @abstractmethod
    def read(self, value: object) -> Any:
        """A value as a plain Python value.

        Args:
            value: What was given.

        Returns:
            The plain value, or None where it breaks the rule.
        """

    def option(self) -> dict[str, Any]:
        """The arguments of `ArgumentParser.add_argument` for an option with such values."""
        return {}


@dataclass(frozen=True)
class Whole(Rule):
    """Whole numbers from `least` on.

    Args:
        least: The smallest that is allowed.
    """

    least: int = 1

    @property
    def needed(self) -> str:  # type: ignore[override]  # a rule may compute it
        return f"an integer ≥ {self.least} and < 2^63"

    def read(self, value: object) -> int | None:
        number = values.whole(value)
        return number if number is not None and self.least <= number <= _LARGEST else None

    def option(self) -> dict[str, Any]:
        return {"type": int}


@dataclass(frozen=True)
class Real(Rule):
    """Finite numbers inside a range.

    Args:
        needed: The range, for messages.
        inside: Whether a number lies in it.
    """

    needed: str = "a finite number > 0"
    inside: Callable[[float], bool] = lambda value: value > 0

    def read(self, value: object) -> float | None:
        number = values.real(value)
        return number if number is not None and math.isfinite(number) and self.inside(number) else None

    def option(self) -> dict[str, Any]:
        return {"type": number}


POSITIVE = Real()
"""The rule of finite numbers > 0."""
NONNEGATIVE = Real("a finite number ≥ 0", lambda value: value >= 0)
"""The rule of finite numbers ≥ 0."""
SHARE = Real("in [0, 1]", lambda value: 0 <= value <= 1)
"""The rule of numbers in [0, 1]."""


@dataclass(frozen=True)
class Truth(Rule):
    """True or false."""

    needed = "true or false"

    def read(self, value: object) -> bool | None:
        return values.truth(value)

    def option(self) -> dict[str, Any]:
        return {"action": argparse.BooleanOptionalAction}


@dataclass(frozen=True)
class Choice(Rule):
    """One of some names, which may grow.

    Args:
        names: The names; a registry, say.
    """

    names: Iterable[str]

    @property
    def needed(self) -> str:  # type: ignore[override]  # a rule may compute it
        return f"one of {', '.join(self.names)}"

    def read(self, value: object) -> str | None:
        return str(value) if isinstance(value, str) and value in tuple(self.names) else None

    def option(self) -> dict[str, Any]:
        return {"choices": tuple(self.names)}


@dataclass(frozen=True)
class Several(Rule):
    """A list of values that each keep a rule.

    Args:
        each: The rule.
        least: How many there are at least.
        most: How many there are at most; None for any number.
    """

    each: Rule
    least: int = 0
    most: int | None = None

    @property
    def needed(self) -> str:  # type: ignore[override]  # a rule may compute it
        exact = self.least == self.most
        count = f" of {self.least}{'' if exact else ' or more'}" if self.least else ""
        return f"a list{count}, each {self.each.needed}"

    def read(self, value: object) -> tuple[Any, ...] | None:
        given = values.entries(value)
        if given is None or not self.least <= len(given) <= (self.most or len(given)):
            return None
        read = tuple(self.each.read(entry) for entry in given)
        return None if None in read else read

    def option(self) -> dict[str, Any]:
        return {**self.each.option(), "nargs": "+"}


@dataclass(frozen=True)
class Text(Rule):
    """Text that is accepted.

    Args:
        needed: What it has to be, for messages.
        good: Whether a text is.
    """

    needed: str = "text"
    good: Callable[[str], bool] = lambda text: True

    def read(self, value: object) -> str | None:
        return str(value) if isinstance(value, str) and self.good(value) else None


@dataclass(frozen=True)
class Mapping(Rule):
    """What JSON calls an object: settings of something that is chosen by name."""

    needed = "an object of settings by name"

    def read(self, value: object) -> dict[str, Any] | None:
        return (
            dict(value)
            if isinstance(value, collections.abc.Mapping) and all(isinstance(key, str) for key in value)
            else None
        )


@dataclass(frozen=True)
class Optional(Rule):
    """None, or what a rule allows.

    Args:
        rule: The rule.
    """

    rule: Rule

    @property
    def needed(self) -> str:  # type: ignore[override]  # a rule may compute it
        return self.rule.needed

    def read(self, value: object) -> Any:
        return self.rule.read(value)

    def option(self) -> dict[str, Any]:
        return self.rule.option()


def setting(rule: Rule, default: Any = MISSING, *, help: str = "") -> Any:
    """A field of a `Settings` class.

    Args:
        rule: What values it may have.
        default: Its value where nothing is given; without one it has to be given.
        help: One line for the command line.

    Returns:
        The field.
    """
    metadata = {"rule": rule, "help": help}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base class of settings: fields made with `setting`, read and checked when an object is made.

    Numbers of numpy and torch become Python's, arrays and lists tuples.

    Raises:
        ConfigError: A value breaks the rule of its field.
    """

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            given, rule = getattr(self, each.name), each.metadata["rule"]
            value = rule.read(given)
            if value is None and not (given is None and isinstance(rule, Optional)):
                raise ConfigError(f"`{each.name}` must be {rule.needed}, got {values.shown(given)}")
            object.__setattr__(self, each.name, value)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Settings from values by name, as JSON has them.

        Args:
            given: The values.

        Returns:
            The settings.

        Raises:
            ConfigError: An entry is unknown, missing or breaks its rule.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        fixed = [each for each in dataclasses.fields(cls) if each.default is MISSING]
        needed = [each.name for each in fixed if each.default_factory is MISSING]
        wrong = sorted(set(given) - set(known)) or sorted(set(needed) - set(given))
        if wrong:
            first = ", ".join(name[:60] for name in wrong[:6]) + (", …" if len(wrong) > 6 else "")
            raise ConfigError(
                f"unknown or missing settings of {cls.__qualname__}: {first}; known are {', '.join(known) or 'none'}"
            )
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """All values by name, as JSON can hold them."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


@dataclass(frozen=True)
class NoSettings(Settings):
    """Of what has nothing to set."""


def number(text: str) -> float:
    """A number or a fraction from a command line, such as 0.5 or 36/255.

    Args:
        text: What was typed.

    Returns:
        Its value.

    Raises:
        ArgumentTypeError: It is neither.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number such as 0.5 or 36/255") from None
