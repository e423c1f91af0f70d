"""Files of mirrors: one download for all, checked, and going on where it broke off."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from tests.devpi.conftest import Devpi, Upstream


def path_of(devpi: Devpi, index: str, project: str, name: str) -> str:
    """Return the path of a file, as its page tells it."""
    where = f"/{index}/+simple/{project}/"
    found = next(str(file["url"]) for file in devpi.get(where).json()["files"] if file["filename"] == name)
    return urlsplit(urljoin(where, found)).path


def test_file_is_fetched_once_and_stored(devpi: Devpi, upstream: Upstream, name: str) -> None:
    content = b"six" * 100000
    upstream.page("six", [upstream.file("six-1.0.tar.gz", content)])
    devpi.mirror(f"root/{name}", upstream)
    path = path_of(devpi, f"root/{name}", "six", "six-1.0.tar.gz")
    first = devpi.get(path)
    assert first.content == content
    assert first.headers["Cache-Control"] == "no-store"
    second = devpi.get(path)
    assert second.content == content
    assert "immutable" in second.headers["Cache-Control"]
    assert upstream.paths().count("/files/six-1.0.tar.gz") == 1
