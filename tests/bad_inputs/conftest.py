import pytest
from refused import Given


@pytest.fixture(scope="module")
def g(tmp_path_factory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that one is in, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
