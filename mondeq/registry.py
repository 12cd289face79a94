"""Names of classes: a class enrols where it is defined, and command line, saved runs and messages know it from then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mondeq import values
from mondeq.errors import ConfigError

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """{name: class} of one kind of thing.

    Args:
        what: What the things are, for messages: "activation", say.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._classes: dict[str, type[T]] = {}

    def enrol(self, name: str) -> Callable[[C], C]:
        """A decorator that gives a class a name.

        Args:
            name: The name in saved files and on the command line.

        Returns:
            The decorator, which gives the class back as it is.

        Raises:
            ConfigError: Another class has that name. (The same one, defined again by a reload, replaces itself.)
        """

        def decorate(cls: C) -> C:
            other = self._classes.get(name)
            if other is not None and other.__qualname__ != cls.__qualname__:
                raise ConfigError(f"{self.what} {name!r} is {other.__qualname__} already; choose another name")
            self._classes[name] = cls
            return cls

        return decorate

    def withdraw(self, name: str) -> type[T]:
        """Take a name away again, as tests do with what they enrol.

        Args:
            name: The name.

        Returns:
            The class that had it.

        Raises:
            KeyError: None had.
        """
        return self._classes.pop(name)

    def __getitem__(self, name: object) -> type[T]:
        if not isinstance(name, str) or name not in self._classes:
            known = ", ".join(self._classes)
            raise ConfigError(
                f"unknown {self.what} {values.shown(name)}; choose one of {known}, or import the module that enrols it"
            )
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def items(self) -> Iterator[tuple[str, type[T]]]:
        """Pairs of name and class, in the order in which they enrolled."""
        return iter(self._classes.items())

    def name_of(self, cls: type) -> str | None:
        """The name of exactly one class: a subclass may be something else.

        Args:
            cls: The class.

        Returns:
            Its name, or None.
        """
        return next((name for name, known in self._classes.items() if known is cls), None)
