"""The exceptions of this package, all one-line messages that the command line prints as they are."""

import unicodedata

# Of the same category as the marks that turn the writing direction, but part of the spelling of words.
_JOINERS = "\u200c\u200d"


def is_showable(character: str) -> bool:
    """Whether a terminal can be shown it: no control, no line separator, no mark that turns the writing direction."""
    category = unicodedata.category(character)
    return category not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _JOINERS


def showable(text: str) -> str:
    """`text`, which may come from a foreign file or its name, on one line and with what is not showable escaped."""
    return "".join(c if is_showable(c) else c.encode("unicode_escape").decode("ascii") for c in text)


class MondeqError(Exception):
    """Base class: everything this package raises on purpose. The message is kept `showable`."""

    def __init__(self, message: str = "") -> None:
        super().__init__(showable(message))


class ConfigError(MondeqError, ValueError):
    """An option, argument or configuration value is unknown or outside its range."""


class DataError(MondeqError, ValueError):
    """A data set is missing, truncated, tampered with or malformed."""


class RunError(MondeqError, ValueError):
    """A run folder or checkpoint cannot be used as asked."""


class TrainingError(MondeqError, RuntimeError):
    """Training cannot go on; the message says why and what was kept."""
