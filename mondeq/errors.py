"""The exceptions of this package, all one-line messages that the command line prints as they are."""

import unicodedata

# Of the same category as the marks that turn the writing direction, but part of the spelling of words.
_JOINERS = "\u200c\u200d"


def is_showable(character: str) -> bool:
    """Whether a terminal can be shown a character.

    No control, no line separator and no mark that turns the writing direction can be shown.

    Args:
        character: One character.

    Returns:
        Whether it can be shown.
    """
    category = unicodedata.category(character)
    return category not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _JOINERS


def showable(text: str) -> str:
    """A text on one line and with what is not showable escaped.

    Args:
        text: Any text, such as one from a foreign file or its name.

    Returns:
        The text, in which what `is_showable` refuses is written as an escape sequence.
    """
    return "".join(c if is_showable(c) else c.encode("unicode_escape").decode("ascii") for c in text)


class MondeqError(Exception):
    """The base class of everything this package raises on purpose.

    Args:
        message: What happened, in one line. It is kept `showable`.
    """

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


class BrokenCertificate(MondeqError, RuntimeError):
    """What a certificate excludes was found; the message says where the sample is."""
