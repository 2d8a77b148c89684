"""What the documentation shows is what happens: blocks run, commands run, files parse, links lead somewhere."""

import doctest
import inspect
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import kompakt
from kompakt.compressor.cli import run
from kompakt.compressor.config import parse_pipeline
from kompakt.compressor.errors import KompaktError
from kompakt.compressor.models.catalog import CATALOG, Carrier
from kompakt.compressor.registry import compressor_class, compressor_names

ROOT = Path(__file__).parents[1]
RUN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*RUN, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
NOT_RUN = {
    "kompakt models pull": "downloads",
    "kompakt eval --quick": "takes a minute; tests/compressor/test_cli_eval.py runs it",
}
"""Commands that are shown and not run, and why."""

FENCE = re.compile(r"^```(\w+)( models)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
EXIT = re.compile(r"# exits with (\d+)")
ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
run_pages = pytest.mark.parametrize("page", RUN, ids=lambda path: path.name)


@dataclass(frozen=True)
class Block:
    language: str
    needs_models: bool
    code: str
    line: int


def blocks(page):
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], bool(match[2]), match[3], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a reader, with the data of the examples."""
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_models(empty_cache, monkeypatch):
    for spec in CATALOG.values():
        monkeypatch.delenv(spec.env_var, raising=False)


@run_pages
def test_page_without_models(page, folder, no_models, capfd):
    follow(page, capfd, with_models=False)


@pytest.mark.models
@run_pages
def test_page_with_models(page, folder, capfd):
    follow(page, capfd, with_models=True)


def follow(page, capfd, *, with_models):
    """Do what a page shows, from top to bottom in one namespace, as a reader would."""
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.needs_models and not with_models:
            continue
        match block.language:
            case "python" if ">>>" in block.code:
                run_session(block, namespace, where)
            case "python":
                exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
            case "toml":
                parse_pipeline(block.code)
                Path("pipeline.toml").write_text(block.code, encoding="utf-8")
            case "bash" | "console":
                run_commands(block, capfd, where)
            case other:
                assert other == "text", f"{where}: a block of {other} is not checked"


def run_session(block, namespace, where):
    test = doctest.DocTestParser().get_doctest(block.code, namespace, where, where, block.line)
    told = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(test, out=told.append, clear_globs=False)
    assert not told, "".join(told)
    namespace.update(test.globs)


def run_commands(block, capfd, where):
    """Run the lines that start with ``kompakt``; in a console block, compare what each prints."""
    is_console = block.language == "console"
    pieces = re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:] if is_console else block.code.splitlines()
    for piece in pieces:
        line, _, expected = piece.partition("\n")
        if not line.startswith("kompakt ") or line.startswith(tuple(NOT_RUN)):
            continue
        capfd.readouterr()
        status = run(shlex.split(line, comments=True)[1:])
        out, err = capfd.readouterr()
        wanted = EXIT.search(line)
        assert status == (int(wanted[1]) if wanted else 0), f"{where}: {line}\n{err}"
        assert "passed through" not in err, f"{where}: {line}\n{err}"
        assert not is_console or out.strip() == expected.strip(), f"{where}: {line}"


def test_nothing_is_skipped_that_is_not_shown():
    shown = "\n".join(block.code for page in RUN for block in blocks(page))
    assert [command for command in NOT_RUN if command not in shown] == []


@pages
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def anchors(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_fences_are_closed_and_lines_are_short(page):
    lines = page.read_text(encoding="utf-8").split("\n")
    assert sum(line.startswith("```") for line in lines) == 2 * len(blocks(page))
    long = [line for line in lines if len(line) > 120 and not line.startswith(("|", "kompakt.compressor.errors."))]
    assert long == []


def test_readme_lists_the_compressors():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## Compressors\n")[2].partition("\n## ")[0]
    assert ROW.findall(section) == compressor_names()


@pytest.mark.parametrize("name", compressor_names())
def test_options_are_documented_with_their_defaults(name):
    page = (ROOT / "docs" / "compressors.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE)
    options = inspect.signature(compressor_class(name)).parameters.values()
    assert rows == [(option.name, repr(option.default)) for option in options]


def test_every_error_is_documented():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    family = [name for name in kompakt.__all__ if issubclass(as_class(name), KompaktError)]
    assert [name for name in family if f"── {name}" not in page and name != "KompaktError"] == []


def as_class(name):
    value = getattr(kompakt, name)
    return value if inspect.isclass(value) else type(value)


def test_models_are_documented_with_their_variables():
    configuration = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for spec in CATALOG.values():
        assert f"`{spec.env_var}`" in configuration
        if isinstance(spec.carrier, Carrier):
            assert f"`{spec.carrier.distribution}` {spec.carrier.version}" in page
        assert spec.hub is None or f"`{spec.hub.repo}`" in page


def test_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{kompakt.__version__}] - " in changelog
