"""Pipelines as TOML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kompakt
from kompakt import ConfigError, Pipeline
from kompakt.compressor.config import parse_pipeline
from kompakt.compressor.pipeline import Stage
from kompakt.compressor.types import WHOLE_KINDS, Budget, Kind

stages = st.one_of(
    st.just(kompakt.load("lexical")),
    st.builds(lambda s, n: kompakt.load("dedup", similarity=s, min_words=n), st.floats(0.1, 1), st.integers(1, 9)),
    st.builds(lambda m: kompakt.load("default", model=m), st.sampled_from(["auto", "none", "minilm-l6"])),
    st.builds(
        lambda g, c: kompakt.load("selective-context", granularity=g, context=c),
        st.sampled_from(["phrase", "token", "sentence"]),
        st.sampled_from(["document", "sentence"]),
    ),
)
pipelines = st.builds(
    Pipeline,
    st.lists(st.builds(Stage, stages, st.floats(0.1, 10)), min_size=1, max_size=4),
    tokenizer=st.sampled_from([None, "o200k_base", "a folder/\u00e9"]),
    strict=st.booleans(),
    on_error=st.sampled_from(["pass_through", "raise"]),
    mark_omissions=st.booleans(),
    keep=st.none() | st.dictionaries(st.sampled_from(WHOLE_KINDS), st.floats(0.001, 1), min_size=1),
)


@given(pipelines)
def test_round_trip(pipeline):
    again = parse_pipeline(pipeline.to_toml())
    assert again.stages == pipeline.stages
    for setting in ("tokenizer", "strict", "on_error", "mark_omissions", "budget"):
        assert getattr(again, setting) == getattr(pipeline, setting)
    assert again.to_toml() == pipeline.to_toml()


def test_golden_file_of_version_1():
    text = (
        'schema_version = 1\ntokenizer = "o200k_base"\nstrict = true\non_error = "raise"\nmark_omissions = true\n'
        '[[stages]]\ncompressor = "dedup"\n[stages.options]\nsimilarity = 0.9\n'
        '[[stages]]\ncompressor = "lexical"\nshare = 2\n'
    )
    pipeline = parse_pipeline(text)
    assert [stage.compressor.name for stage in pipeline.stages] == ["dedup", "lexical"]
    assert pipeline.stages[0].compressor.options["similarity"] == 0.9
    assert pipeline.stages[1].share == 2.0
    assert (pipeline.tokenizer, pipeline.strict, pipeline.on_error) == ("o200k_base", True, "raise")
    assert pipeline.mark_omissions


def test_budgets_by_kind_are_read():
    text = '[keep]\nprose = 0.25\njson = 1\n[[stages]]\ncompressor = "lexical"\n'
    assert parse_pipeline(text).budget == Budget(by_kind={Kind.PROSE: 0.25, Kind.JSON: 1})
    assert parse_pipeline('[[stages]]\ncompressor = "lexical"\n').budget is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages = [", "not valid TOML"),
        ("", "at least one"),
        ("schema_version = 2", "schema_version 2"),
        ('tokeniser = "x"', "did you mean 'tokenizer'"),
        ('strict = "yes"', "strict must be bool"),
        ("stages = [3]", "stage 1 must be a table"),
        ("[[stages]]\nshare = 1", "stage 1 must be a table"),
        ('[[stages]]\ncompressor = "lexcial"', "did you mean 'lexical'"),
        ('[[stages]]\ncompressor = "lexical"\nshares = 1', "did you mean 'share'"),
        ('[[stages]]\ncompressor = "lexical"\nshare = true', "share must be float"),
        ('[[stages]]\ncompressor = "lexical"\nshare = -1', "share must be above 0"),
        ('[[stages]]\ncompressor = "dedup"\n[stages.options]\nsimilarity = "x"', "similarity must be float"),
        ('[[stages]]\ncompressor = "dedup"\n[stages.options]\nsimilarty = 1', "did you mean 'similarity'"),
        ('keep = 0.5\n[[stages]]\ncompressor = "lexical"', "keep must be dict, got 0.5"),
        ('[keep]\nproze = 0.5\n[[stages]]\ncompressor = "lexical"', "no kind of document 'proze'"),
        ('[keep]\nprose = 1.5\n[[stages]]\ncompressor = "lexical"', r"\[keep\]: keep of prose must be above 0"),
        ('[keep]\nprose = "x"\n[[stages]]\ncompressor = "lexical"', r"\[keep\]: keep of prose must be a number"),
        ('on_error = "ignore"\n[[stages]]\ncompressor = "lexical"', "on_error must be"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        parse_pipeline(text)
    path = tmp_path / "pipeline.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"pipeline\.toml.*" + words):
        Pipeline.from_toml(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        Pipeline.from_toml(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml"):
        Pipeline.from_toml(tmp_path / "binary.toml")


def test_what_has_no_name_cannot_be_written():
    class Own(type(kompakt.load("lexical"))):
        name = "my-own"

    with pytest.raises(ConfigError, match="not registered"):
        Pipeline([Own()]).to_toml()
    with pytest.raises(ConfigError, match="no name"):
        Pipeline(["lexical"], tokenizer=object()).to_toml()
