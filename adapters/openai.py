"""Clients of OpenAI that compress what they send: ``client = wrap(OpenAI(), keep=0.4)``."""

from kompakt.adapters._http import Kompakt
from kompakt.adapters._messages import Rules
from kompakt.adapters._settings import Report
from kompakt.adapters._wrap import wrap

__all__ = ["Kompakt", "Report", "Rules", "wrap"]
