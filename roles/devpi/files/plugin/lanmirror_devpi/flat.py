"""A mirror with the setting `flat`: its upstream is one page, at its `mirror_url`, with the files of all projects.

Vendors have such pages, and `pip --find-links` takes them. devpi asks for a page of each project; it gets one with the
project's links of that page.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from devpi_server import mirror
from devpi_server.model import ensure_boolean

from lanmirror_devpi.replace import replace

FLAT = "flat"


@dataclass(frozen=True)
class Page:
    """What devpi reads of an answer."""

    status_code: int
    headers: Any
    url: str


class FlatUpstream:
    """The HTTP client of a mirror, for one whose projects stand on one page."""

    def __init__(self, client: Any, page: Any) -> None:
        self.client, self.page = client, page

    def __getattr__(self, name: str) -> Any:
        """Leave all but pages as it is."""
        return getattr(self.client, name)

    async def async_get(self, url: Any, **options: Any) -> tuple[Any, Any]:
        """Return the answer that an upstream with a page for each project would give."""
        answer, text = await self.client.async_get(self.page, **options)
        if answer.status_code != 200 or text is None:  # noqa: PLR2004 - HTTP's OK
            return answer, text
        parser = mirror.IndexParser(mirror.URL(url).asfile().basename)
        parser.parse_index(mirror.URL(str(answer.url)), text)
        rows = []
        for link in parser.releaselinks:
            needs = f' data-requires-python="{html.escape(link.requires_python)}"' if link.requires_python else ""
            rows.append(f'<a href="{html.escape(link.url)}"{needs}>{html.escape(link.basename)}</a>')
        return Page(200 if rows else 404, answer.headers, mirror.URL(url).url), "\n".join(rows)


def install() -> None:
    """Make `flat` a stored setting of mirrors.

    Not by devpi's hook for that (devpiserver_indexconfig_defaults): a change of any other setting would reset it.
    """

    def get_possible_indexconfig_keys(self: Any) -> tuple[str, ...]:
        """Return the names of the settings that mirrors have beside devpi's own."""
        return (*theirs(self), FLAT)

    def normalize_indexconfig_value(self: Any, key: str, value: Any) -> Any:
        """Return the value of a setting as it is stored, and None for one that is not known."""
        return ensure_boolean(value) if key == FLAT else normalize(self, key, value)

    theirs = replace(mirror.MirrorCustomizer, "get_possible_indexconfig_keys", get_possible_indexconfig_keys)
    normalize = replace(mirror.MirrorCustomizer, "normalize_indexconfig_value", normalize_indexconfig_value)
