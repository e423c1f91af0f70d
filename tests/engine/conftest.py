"""One upstream is built in a session; each test gets a copy of it, since bytes differ from build to build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.lab import Engine, Lab, laboratory
from tests.upstream import channel


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an upstream, not to be changed."""
    root = tmp_path_factory.mktemp("built")
    channel.lay_out(root)
    return root


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Return what starts runs of the engine."""
    engine = Engine(tmp_path_factory.mktemp("runs"))
    yield engine
    engine.close()


@pytest.fixture
def lab(engine: Engine, built: Path, tmp_path: Path) -> Iterator[Lab]:
    """Return an upstream of its own and an empty mirror."""
    with laboratory(engine, built, tmp_path) as lab:
        yield lab
