"""The metadata of wheels (PEP 658)."""

from __future__ import annotations

import gzip
import hashlib
from typing import Any

import pytest
import requests

from tests.devpi.conftest import Devpi, Upstream
from tests.devpi.origin import LONG, Origin, other, path_of, wheel

WHEEL = "six-1.0-py3-none-any.whl"
CONTENT, METADATA = wheel("six", "1.0", 100_000)


@pytest.fixture
def index(devpi: Devpi, upstream: Upstream, name: str) -> str:
    devpi.mirror(f"root/{name}", upstream)
    return f"root/{name}"


def have(upstream: Upstream, promised: Any, *, metadata: bytes | None = METADATA) -> tuple[Origin, Origin]:
    """Have a wheel whose page promises metadata; return the wheel, and the metadata."""
    told = {} if promised is None else {"core-metadata": promised}
    file = Origin(upstream, WHEEL, CONTENT, **told)
    beside = Origin(upstream, f"{WHEEL}.metadata", metadata or b"")
    if metadata is None:
        del upstream.answer[f"/files/{WHEEL}.metadata"]
    upstream.page("six", [file.entry])
    return file, beside


PROMISED = {"sha256": hashlib.sha256(METADATA).hexdigest()}


@pytest.mark.parametrize("promised", [PROMISED, True], ids=["hash", "no hash"])
def test_metadata_is_fetched_once_without_the_wheel(
    devpi: Devpi, upstream: Upstream, index: str, promised: Any
) -> None:
    file, beside = have(upstream, promised)
    path = path_of(devpi, index, "six", WHEEL) + ".metadata"
    assert devpi.get(path).content == METADATA
    assert devpi.get(f"/+lanmirror/stored{path}").status_code == 204
    assert devpi.get(path).content == METADATA
    assert devpi.get(path, **{"X-Lanmirror-Accel": "1"}).headers["X-Accel-Redirect"] == f"/+stored{path}"
    assert (devpi.data / "+files" / path.lstrip("/")).read_bytes() == METADATA
    assert (len(file.asked), len(beside.asked)) == (0, 1)
    # devpi's own files are in nobody's way.
    assert devpi.get(path.removesuffix(".metadata")).content == CONTENT


def test_metadata_that_is_packed_is_unpacked(devpi: Devpi, upstream: Upstream, index: str) -> None:
    _, beside = have(upstream, PROMISED)
    beside.script = [other(gzip.compress(METADATA), Content_Encoding="gzip")]
    answer = devpi.get(path_of(devpi, index, "six", WHEEL) + ".metadata")
    assert answer.content == METADATA
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize("what", ["missing", "wrong"])
def test_promised_metadata_that_is_missing_or_wrong_is_that_of_the_wheel(
    devpi: Devpi, upstream: Upstream, index: str, what: str
) -> None:
    file, _ = have(upstream, PROMISED, metadata=None if what == "missing" else METADATA + b"x")
    path = path_of(devpi, index, "six", WHEEL)
    assert devpi.get(f"{path}.metadata").content == METADATA
    assert devpi.get(f"/+lanmirror/stored{path}.metadata").status_code == 204
    assert devpi.get(path).content == CONTENT
    assert len(file.asked) == 1


def test_metadata_that_differs_from_its_hash_and_from_the_wheel_is_not_kept(
    devpi: Devpi, upstream: Upstream, index: str
) -> None:
    have(upstream, {"sha256": "0" * 64})
    path = path_of(devpi, index, "six", WHEEL) + ".metadata"
    assert devpi.get(path).status_code == 502
    assert not (devpi.data / "+files" / path.lstrip("/")).exists()


def test_metadata_of_a_silent_upstream_is_no_404(devpi: Devpi, upstream: Upstream, index: str) -> None:
    _, beside = have(upstream, PROMISED)
    beside.script = [other(b"", status=503)]
    assert devpi.get(path_of(devpi, index, "six", WHEEL) + ".metadata").status_code == 502


def test_metadata_that_nobody_promised_is_none_before_the_wheel_is_here(
    devpi: Devpi, upstream: Upstream, index: str
) -> None:
    file, beside = have(upstream, None)
    path = path_of(devpi, index, "six", WHEEL)
    assert devpi.get(f"{path}.metadata").status_code == 404
    assert (len(file.asked), len(beside.asked)) == (0, 0)
    assert devpi.get(path).content == CONTENT
    assert devpi.get(f"/+lanmirror/stored{path}").status_code == 204
    assert devpi.get(f"{path}.metadata").content == METADATA
    assert (len(file.asked), len(beside.asked)) == (1, 0)


def test_metadata_of_an_uploaded_wheel_is_made_of_it(devpi: Devpi, name: str) -> None:
    devpi.declare(f"root/{name}", type="stage", bases=[])
    form = {":action": "file_upload", "name": "six", "version": "1.0", "filetype": "bdist_wheel", "pyversion": "py3"}
    sent = requests.post(
        f"{devpi.url}/root/{name}/",
        data=form,
        files={"content": (WHEEL, CONTENT)},
        headers=devpi.token(),
        timeout=LONG,
    )
    assert sent.status_code == 200, sent.text
    path = path_of(devpi, f"root/{name}", "six", WHEEL)
    assert devpi.get(path, **{"X-Lanmirror-Accel": "1"}).headers["X-Accel-Redirect"] == f"/+stored{path}"
    assert devpi.get(f"{path}.metadata").content == METADATA
    missing = path.replace(WHEEL, "six-9.0-py3-none-any.whl")
    assert devpi.get(missing).status_code == 404


def test_metadata_goes_with_its_wheel(devpi: Devpi, upstream: Upstream, index: str) -> None:
    have(upstream, PROMISED)
    path = path_of(devpi, index, "six", WHEEL)
    assert devpi.get(f"{path}.metadata").content == METADATA
    assert devpi.get(path).content == CONTENT
    assert devpi.get(f"/+lanmirror/stored{path}").status_code == 204
    devpi.declare(index, volatile=True)
    assert requests.delete(devpi.url + path, headers=devpi.token(), timeout=LONG).ok
    assert list((devpi.data / "+files" / path.lstrip("/")).parent.iterdir()) == []
