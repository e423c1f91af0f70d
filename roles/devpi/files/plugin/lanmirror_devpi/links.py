"""A page, and the links and entries that devpi has in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lanmirror_devpi.page import File, Page, normalized

Link = tuple[str, str, str | None, Any]


def links_of(index: str, page: Page) -> list[Link]:
    """Return the links of a page as devpi has them: name, path and hash, Python, and whether it is yanked."""
    found = []
    for file in page.files:
        algorithm, value = best_hash(file)
        href = f"{index}/{file.path}#{algorithm}={value}" if value else f"{index}/{file.path}"
        found.append((file.name, href, file.told.get("requires-python"), file.told.get("yanked") or None))
    return found


def page_of(project: str, links: Sequence[Link]) -> Page:
    """Return the page of links that devpi stored: no URLs, which stand in the entries of the files."""
    files = []
    for name, href, python, yanked in links:
        path, _, spec = href.partition("#")
        algorithm, _, value = spec.partition("=")
        told = {"hashes": {algorithm: value} if value else {}, "requires-python": python, "yanked": yanked}
        told = {key: value for key, value in told.items() if value is not None}
        files.append(File(name, "", path.split("/", 2)[2], told))
    return Page(project, tuple(files), {})


def best_hash(file: File) -> tuple[str, str]:
    """Return the hash that a file is kept under, and its algorithm; "" for none."""
    hashes = file.told.get("hashes") or {}
    algorithm = "sha256" if "sha256" in hashes else next(iter(hashes), "")
    # Below `+e/` are those without a hash, or with one that nobody can compute.
    return (algorithm, hashes[algorithm]) if algorithm and file.path.startswith("+f/") else ("", "")


def projects_of(name: str) -> Iterator[str]:
    """Yield the projects that a file may be of, the longest name first: `a-b-1.0.zip` may be of `a-b` and of `a`."""
    ends = [found.start() for found in re.finditer("-", name)]
    seen = set()
    for end in reversed(ends):
        project = normalized(name[:end])
        if project and project not in seen:
            seen.add(project)
            yield project


def version_of(project: str, name: str) -> str | None:
    """Return the version that a file's name tells, None where it tells none."""
    stem = re.sub(r"(?i)\.(tar\.\w+|tgz|zip|egg|exe|msi|rpm|deb|dmg|tar)$", "", name)
    if name.lower().endswith(".whl"):
        parts = name.split("-")
        return parts[1] if len(parts) > 2 else None  # noqa: PLR2004 - name, version, tags
    for found in re.finditer("-", stem):
        if normalized(stem[: found.start()]) == project:
            return re.sub(r"-py\d.*", "", stem[found.end() :]) or None
    return None


def entry_of(project: str, file: File) -> dict[str, Any]:
    """Return what devpi has in the entry of a file that nobody has fetched (filestore.FileStore.maplink)."""
    algorithm, value = best_hash(file)
    entry: dict[str, Any] = {"url": file.url, "project": project}
    if value:
        entry |= {"hash_spec": f"{algorithm}={value}", "hashes": {algorithm: value}}
    version = version_of(project, file.name)
    return entry | ({"version": version} if version else {})
