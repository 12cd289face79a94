"""The exceptions of this package. Each carries one line: the argument, what came, what is needed, what to do."""


class SplittingError(Exception):
    """Base class: everything this package raises on purpose."""


class InvalidArgument(SplittingError, ValueError):
    """An argument has a value outside its documented range, or a shape that does not fit."""


class InvalidType(SplittingError, TypeError):
    """An argument is of the wrong type, dtype or device."""


class NotConverged(SplittingError, RuntimeError):
    """A solve ended without reaching its tolerance and the caller asked for an exception."""


class ResolventError(SplittingError, RuntimeError):
    """A computed inverse does not invert: its probe residual is too large to be rounding."""
