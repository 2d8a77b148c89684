"""Every error that kompakt raises on purpose.

::

    KompaktError
    ├── ConfigError            an option, a name or a configuration file is wrong
    ├── InputError             a document or a query cannot be used
    ├── BudgetError            the budget is malformed, or cannot hold what it must hold
    ├── ModelError             a model or tokenizer cannot be used
    │   ├── ModelNotFoundError     it is not on this machine; the message names the pull command
    │   └── DownloadError          pulling it failed, or what arrived is not what was pinned
    ├── BackendError           a model behind an adapter, or a cluster, cannot be reached or failed
    ├── StoreError             a store or an index cannot be used, or an entry is damaged
    ├── MissingExtraError      an optional dependency is absent; the message names the pip command
    ├── ValidityError          an output broke a promise and was withheld
    └── CompressionError       ``strict=True`` and a request could not be compressed
"""

from __future__ import annotations


class KompaktError(Exception):
    """Base class of all errors raised by kompakt."""


class ConfigError(KompaktError, ValueError):
    """An option, a registry name or a configuration file is wrong."""


class InputError(KompaktError, ValueError):
    """A document or a query cannot be used as it is."""


class BudgetError(KompaktError, ValueError):
    """The budget is malformed, or smaller than what it must hold."""


class ModelError(KompaktError):
    """A model or a tokenizer cannot be used."""


class ModelNotFoundError(ModelError, LookupError):
    """A model or a tokenizer is not on this machine."""


class DownloadError(ModelError):
    """A download failed, or its content differs from the pinned hash."""


class BackendError(KompaktError):
    """A model behind an adapter, or a cluster that a job runs on, cannot be reached or failed."""


class StoreError(KompaktError):
    """A store or an index cannot be used, or an entry of it is damaged."""


class MissingExtraError(KompaktError, ImportError):
    """An optional dependency is not installed.

    Args:
        feature: What needs it, as the user would call it.
        extra: The extra of this package that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs optional dependencies: pip install 'kompakt[{extra}]'")
        self.feature = feature
        self.extra = extra


class ValidityError(KompaktError):
    """An output broke a promise and was withheld."""


class CompressionError(KompaktError):
    """A request could not be compressed and ``strict=True`` forbids passing it through."""
