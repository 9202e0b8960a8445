"""The two errors of the project: each message says what is wrong, where, and what to do next."""


class DataError(ValueError):
    """A scan, label or data set that cannot be used as it is."""


class ConfigError(ValueError):
    """A recipe, bundle or command-line setting that cannot be used as it is."""
