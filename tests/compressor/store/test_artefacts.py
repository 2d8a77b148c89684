"""What models say of texts: asked once, counted, and nobody else's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.store.artefacts import Artefacts, Recipe, process_store
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.places import open_store


class Asked:
    """A model that counts letters, and remembers what it was asked."""

    def __init__(self, name="letters", wrong=False):
        self.texts = []
        self.recipe = Recipe([name], self.compute, lambda n: b"%d" % n, int)
        self._wrong = wrong

    def compute(self, texts):
        self.texts.append(list(texts))
        return [len(text) + self._wrong for text in texts]


@pytest.fixture
def store():
    return MemoryStore()


def counts(artefacts):
    return artefacts.hits, artefacts.misses


def test_equal_texts_are_computed_once(store):
    model = Asked()
    artefacts = Artefacts(store)
    assert artefacts.fetch(model.recipe, ["bb", "a", "bb", "ccc", "a"]) == [2, 1, 2, 3, 1]
    assert model.texts == [["bb", "a", "ccc"]]
    assert counts(artefacts) == (2, 3)
    assert artefacts.fetch(model.recipe, ["dddd", "a"]) == [4, 1]
    assert model.texts[1:] == [["dddd"]]
    assert counts(artefacts) == (3, 4)


def test_nothing_is_computed_where_all_is_there(store):
    model, other = Asked(), Asked(wrong=True)
    Artefacts(store).fetch(model.recipe, ["a", "bb"])
    artefacts = Artefacts(store)
    assert artefacts.fetch(other.recipe, ["bb", "a", "bb"]) == [2, 1, 2]
    assert other.texts == []
    assert counts(artefacts) == (3, 0)
    assert artefacts.fetch(other.recipe, []) == []
    assert other.texts == []


def test_another_recipe_is_another_artefact(store):
    model, other = Asked("letters"), Asked("characters", wrong=True)
    artefacts = Artefacts(store)
    assert artefacts.fetch(model.recipe, ["a"]) == [1]
    assert artefacts.fetch(other.recipe, ["a"]) == [2]
    assert counts(artefacts) == (0, 2)


def test_what_was_read_ahead_counts_as_computed_once(store):
    model = Asked()
    artefacts = Artefacts(store)
    artefacts.fetch(model.recipe, ["old"])
    artefacts = Artefacts(store)
    artefacts.fetch(model.recipe, ["a", "bb", "old"], is_ahead=True)
    assert counts(artefacts) == (0, 0)
    artefacts.fetch(model.recipe, ["a", "old"])
    assert counts(artefacts) == (1, 1)
    artefacts.fetch(model.recipe, ["a", "bb", "bb", "new"])
    assert counts(artefacts) == (3, 3)
    assert model.texts == [["old"], ["a", "bb"], ["new"]]


def test_reading_ahead_twice_computes_once(store):
    model = Asked()
    artefacts = Artefacts(store)
    artefacts.fetch(model.recipe, ["a", "bb"], is_ahead=True)
    artefacts.fetch(model.recipe, ["bb", "ccc"], is_ahead=True)
    assert model.texts == [["a", "bb"], ["ccc"]]
    artefacts.fetch(model.recipe, ["a", "bb", "ccc"])
    assert counts(artefacts) == (0, 3)


@pytest.mark.parametrize("damaged", [b"", b"three", b"\xff"])
def test_what_cannot_be_decoded_is_computed_again(store, damaged):
    model = Asked()
    artefacts = Artefacts(store)
    artefacts.fetch(model.recipe, ["a", "bb"])
    keys = list(store.keys())
    key = keys[store.get_many(keys).index(b"1")]
    store.put_many({key: damaged})
    artefacts = Artefacts(store)
    assert artefacts.fetch(model.recipe, ["a", "bb", "a"]) == [1, 2, 1]
    assert model.texts[1:] == [["a"]]
    assert counts(artefacts) == (2, 1)
    assert store.get_many([key]) == [b"1"]


def test_tenants_never_find_each_others(store):
    model = Asked()
    for tenant in ("", "one", "two", "one "):
        artefacts = Artefacts(store, tenant=tenant)
        artefacts.fetch(model.recipe, ["a", "bb"])
        assert counts(artefacts) == (0, 2)
    assert len(list(store.keys())) == 8
    again = Artefacts(store, tenant="one")
    again.fetch(model.recipe, ["a"])
    assert counts(again) == (1, 0)


@pytest.mark.parametrize("tenant", [None, 3, b"one", ["one"]])
def test_a_tenant_is_a_text(tenant):
    with pytest.raises(ConfigError, match="tenant must be a str"):
        Artefacts(tenant=tenant)


def test_a_tenant_is_unicode():
    with pytest.raises(InputError, match="the tenant holds a lone surrogate"):
        Artefacts(tenant="a\ud800")


def test_views_count_for_themselves_and_share_what_was_read_ahead(store):
    model = Asked()
    originals = [Artefacts(store), Artefacts(store)]
    first, second = Artefacts.together(originals)
    first.fetch(model.recipe, ["a", "bb", "both"], is_ahead=True)
    first.fetch(model.recipe, ["a", "both"])
    second.fetch(model.recipe, ["bb", "both"])
    # who comes first is said to have had it computed
    assert counts(first) == (0, 2)
    assert counts(second) == (1, 1)
    assert len(model.texts) == 1
    assert [counts(one) for one in originals] == [(0, 0), (0, 0)]


def test_views_of_different_tenants_or_stores_share_nothing(store):
    model = Asked()
    several = [Artefacts(store), Artefacts(store, tenant="x"), Artefacts(MemoryStore()), Artefacts(store)]
    views = Artefacts.together(several)
    assert [view.tenant for view in views] == ["", "x", "", ""]
    assert [[one.is_shared_with(other) for other in views] for one in views] == [
        [True, False, False, True],
        [False, True, False, False],
        [False, False, True, False],
        [True, False, False, True],
    ]
    views[0].fetch(model.recipe, ["a"], is_ahead=True)
    for view in views:
        view.fetch(model.recipe, ["a"])
    assert [counts(view) for view in views] == [(0, 1), (0, 1), (0, 1), (1, 0)]


def test_without_a_store_the_memory_of_the_process_is_used():
    model = Asked("only here")
    Artefacts().fetch(model.recipe, ["a"])
    artefacts = Artefacts()
    artefacts.fetch(model.recipe, ["a"])
    assert counts(artefacts) == (1, 0)
    assert artefacts.store is process_store()


def test_a_store_that_keeps_nothing_costs_time_only():
    model = Asked()
    artefacts = Artefacts(MemoryStore(1))
    artefacts.fetch(model.recipe, ["a"], is_ahead=True)
    assert artefacts.fetch(model.recipe, ["a", "a"]) == [1, 1]
    assert artefacts.fetch(model.recipe, ["a"]) == [1]
    assert model.texts == [["a"], ["a"], ["a"]]


def test_a_model_that_fails_leaves_nothing_behind(store):
    def fail(texts):
        raise RuntimeError("no memory left")

    model = Asked()
    with pytest.raises(RuntimeError):
        Artefacts(store).fetch(Recipe(["letters"], fail, model.recipe.encode, int), ["a"])
    assert list(store.keys()) == []
    with pytest.raises(ValueError, match="zip"):
        Artefacts(store).fetch(Recipe(["letters"], lambda texts: [1], model.recipe.encode, int), ["a", "bb"])
    assert list(store.keys()) == []


def test_artefacts_outlive_the_process_in_a_file(tmp_path):
    model, other = Asked(), Asked(wrong=True)
    with open_store(tmp_path / "a.sqlite") as store:
        Artefacts(store, tenant="t").fetch(model.recipe, ["a", "é"])
    with open_store(tmp_path / "a.sqlite") as store:
        artefacts = Artefacts(store, tenant="t")
        assert artefacts.fetch(other.recipe, ["é", "a", "new"]) == [1, 1, 4]
        assert counts(artefacts) == (2, 1)


calls = st.lists(st.tuples(st.lists(st.sampled_from(["", "a", "bb", "ccc", "dddd"]), max_size=6), st.booleans()))


@given(calls)
def test_each_text_is_asked_about_once_and_counted_once(calls):
    model = Asked()
    artefacts = Artefacts(MemoryStore())
    asked = set()
    n_used = 0
    used = set()
    for texts, is_ahead in calls:
        assert artefacts.fetch(model.recipe, texts, is_ahead=is_ahead) == [len(text) for text in texts]
        asked.update(texts)
        if not is_ahead:
            n_used += len(texts)
            used.update(texts)
    assert sorted(text for batch in model.texts for text in batch) == sorted(asked)
    assert counts(artefacts) == (n_used - len(used), len(used))
