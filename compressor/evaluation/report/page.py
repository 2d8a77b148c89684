"""The pages of ``kompakt eval`` and ``kompakt inspect``: one file each, which asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.evaluation.report import formats, pieces, tables

if TYPE_CHECKING:
    from jinja2 import Environment

    from kompakt.compressor.evaluation.summary import Summary
    from kompakt.compressor.inspection import View

_FOLDER: Final = files("kompakt.compressor.evaluation.report")


def render_report(summary: Summary) -> str:
    """Return the report of an evaluation as a complete HTML document.

    Args:
        summary: What the run amounts to.

    Raises:
        MissingExtraError: If the extra ``report`` is not installed.
    """
    environment = _environment()
    # matplotlib is wanted here and nowhere else
    from kompakt.compressor.evaluation.report import charts, figures
    from kompakt.compressor.evaluation.report.looks import looks

    drawn = looks(summary)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        looks=drawn,
        swatches={name: charts.swatch(look) for name, look in drawn.items()},
        metrics=tables.metric_names(summary),
        verdict=tables.verdict(summary),
        panels=figures.panels(summary, drawn),
        latency=figures.latency_chart(summary, drawn) if summary.latencies else None,
        speeds=figures.speeds(summary),
        task_tables=tables.task_tables(summary),
        grids=tables.grids(summary),
        differences_scale=tables.scale_of((one.estimate for one in summary.differences), around_zero=True),
        payload=_json(pieces.payload(summary)),
    )


def render_view(view: View) -> str:
    """Return one compression as a complete HTML document, which also reads without scripts.

    Args:
        view: The compression.

    Raises:
        MissingExtraError: If the extra ``report`` is not installed.
    """
    return _environment().get_template("view.html.j2").render(view=view, levels=pieces.Levels(view))


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError as error:
        raise MissingExtraError("the report", "report") from error

    def finalize(value: object) -> object:
        # markup is ours; everything else may hold control characters
        return formats.harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def exact(text: str) -> Markup:
        # a parser would read the end of a line in its own way, and templates would see half of it here
        return escape(text).replace("\r", Markup("&#13;"))

    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for form in (formats.quality, formats.signed, formats.percent, formats.asked, formats.seconds, formats.count):
        environment.filters[form.__name__] = form
    environment.filters |= {"short": formats.short_count, "harmless": formats.harmless, "exact": exact}
    script = _read("page.js")
    environment.globals |= {
        "nothing": formats.NOTHING,
        "pieces": pieces,
        "sign": tables.sign,
        "roles": tables.ROLES,
        "css": Markup(_read("page.css")),  # noqa: S704 (a file of this package)
        "script": Markup(script),  # noqa: S704 (a file of this package)
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment


def _read(name: str) -> str:
    return _FOLDER.joinpath(name).read_text("utf-8")


def _json(value: object) -> str:
    """Return JSON that no text inside can end early, whatever it says."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
