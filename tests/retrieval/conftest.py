import pytest
from index_parts import DOCUMENTS, create


@pytest.fixture
def index(tmp_path):
    with create(tmp_path / "index") as made:
        made.add(DOCUMENTS)
        yield made
