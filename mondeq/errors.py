"""The exceptions of this package, all one-line messages that the command line prints as they are."""


class MondeqError(Exception):
    """Base class: everything this package raises on purpose."""


class ConfigError(MondeqError, ValueError):
    """An option, argument or configuration value is unknown or outside its range."""


class DataError(MondeqError, ValueError):
    """A data set is missing, truncated, tampered with or malformed."""


class RunError(MondeqError, ValueError):
    """A run folder or checkpoint cannot be used as asked."""


class TrainingError(MondeqError, RuntimeError):
    """Training cannot go on; the message says why and what was kept."""
