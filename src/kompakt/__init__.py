"""kompakt: smaller contexts for language models, with promises that are checked after every run.

>>> import kompakt
>>> small = kompakt.compress("A cat sat. Rome is old. A dog ran.", query="How old is Rome?", max_tokens=6)
>>> small.text
'Rome is old.'
"""

from kompakt.compressor.api import compress, compress_batch
from kompakt.compressor.errors import (
    BackendError,
    BudgetError,
    CompressionError,
    ConfigError,
    DownloadError,
    InputError,
    KompaktError,
    MissingExtraError,
    ModelError,
    ModelNotFoundError,
    StoreError,
    ValidityError,
)
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.registry import load
from kompakt.compressor.types import Budget, Compressed, Document, Span

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Budget",
    "BudgetError",
    "Compressed",
    "CompressionError",
    "ConfigError",
    "Document",
    "DownloadError",
    "InputError",
    "KompaktError",
    "MissingExtraError",
    "ModelError",
    "ModelNotFoundError",
    "Pipeline",
    "Span",
    "StoreError",
    "ValidityError",
    "compress",
    "compress_batch",
    "load",
]
