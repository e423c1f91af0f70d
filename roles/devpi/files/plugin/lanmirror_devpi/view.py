"""The page of a project as clients get it: in JSON (PEP 691) all that is told, in HTML (PEP 503) what HTML has.

New fields come in JSON alone (PEP 833). `api-version` is the highest whose fields are there: 1.0 where a file has no
size, which PEP 700 wants of each, 1.4 with a status of the project (PEP 792), else 1.1.

A page is made once for each of its states, and kept compressed in memory. A state is what the database says of each
index that counts, at the moment of the request: nothing is shown that was uploaded, deleted or changed since.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from devpi_common.metadata import BasenameMeta, splitbasename
from devpi_server import views
from pyramid.response import Response

from lanmirror_devpi import bases, coming, mirror, policy, uploaded
from lanmirror_devpi.answers import later, on_disk
from lanmirror_devpi.kept import Kept, packed
from lanmirror_devpi.page import File, Page, belongs
from lanmirror_devpi.policy import Policy
from lanmirror_devpi.replace import replace
from lanmirror_devpi.tween import Redirect, takes_gzip

JSON = "application/vnd.pypi.simple.v1+json"
HTML = "application/vnd.pypi.simple.v1+html"
# What a client may ask for, the first of equals first, and what it gets (PEP 691).
OFFERS = {
    "text/html": "text/html",
    JSON: JSON,
    HTML: HTML,
    "application/vnd.pypi.simple.latest+json": JSON,
    "application/vnd.pypi.simple.latest+html": HTML,
}
# Bytes of all pages that are kept.
KEPT = 32 << 20
SAFE_PATH = re.compile(r"[\w.+!~/-]+", re.ASCII)
# How many pages are made at a time, at the most.
MAKERS = 8


@dataclass(frozen=True)
class Source:
    """The page of a project in one index.

    Attributes:
        index: user/index.
        state: Differs whenever the page does.
        serial: What the upstream gave with it (header X-PyPI-Last-Serial), -1 for none.
        page: Returns it, and whether it is whole; takes its time.
        changes: When it changes although nobody changes anything, since a file comes of age; None for never.
    """

    index: str
    state: Any
    serial: int
    page: Callable[[], tuple[Page, bool]]
    changes: float | None = None


def sources_of(stage: Any, project: Any) -> list[Source]:
    """Return the pages of a project that count in an index, in the declared order."""
    found = []
    for base in bases.counting(stage, project):
        if base.ixconfig["type"] == "mirror":
            rules = coming.of_stage(base)
            if rules.blocks_all_of(project):
                # Nobody is asked for the name. An empty page, since 404 has some clients look in another index.
                found.append(Source(base.name, rules.key, -1, partial(nothing, str(project))))
                continue
            try:
                known, _ = mirror.get(base, project)
            except base.UpstreamNotFoundError:
                continue
            # A list of known malware that came meanwhile did not know of this page.
            rules = coming.of_stage(base)
            now = time.time()
            changes = coming.comes(rules, known, now)
            page = partial(page_of_mirror, known, rules, now)
            found.append(Source(base.name, (known.mark, rules.key, changes), known.serial, page, changes))
        else:
            state = uploaded.state(base, project)
            found.append(Source(base.name, state, -1, partial(uploaded.page, base, project)))
    return found


def nothing(project: str) -> tuple[Page, bool]:
    """Return the page of a project that the rules block as a whole."""
    return Page(project, (), {}), True


def page_of_mirror(known: Any, rules: Policy, now: float) -> tuple[Page, bool]:
    """Return the page of a mirror, with what its rules show of it at that time, which is whole."""
    return (policy.shown(rules, known.page, now).page if rules.key else known.page), True


def note(base: Any, project: Any) -> str:
    """Return what people are told of the files that the rules of an index hide, "" where there are none."""
    rules = coming.of_stage(base)
    if rules.blocks_all_of(project):
        return f"The rules of {base.name} block {project}."
    known = mirror.known_here(base, project) if rules.key else None
    hidden = policy.shown(rules, known.page, time.time()).hidden if known else 0
    return f"The rules of {base.name} hide {hidden} files." if hidden else ""


# --- one page of several ---------------------------------------------------------------------------------------------


def merged(project: str, pages: Iterable[tuple[str, Page]]) -> tuple[list[tuple[str, File]], dict[str, Any]]:
    """Return the files of pages, each with its index, and what they tell of the project: the first one counts."""
    files: dict[str, tuple[str, File]] = {}
    told: dict[str, Any] = {}
    versions: dict[str, None] = {}
    for index, page in pages:
        for file in page.files:
            files.setdefault(file.name, (index, file))
        told = {**page.told, **told}
        versions |= dict.fromkeys(page.told.get("versions") or versions_of(project, page.files))
    return list(files.values()), told | {"versions": list(versions)}


def versions_of(project: str, files: Iterable[File]) -> list[str]:
    """Return the versions that the names of files tell."""
    found = [splitbasename(file.name, checkarch=False)[1] for file in files if belongs(file.name, project)]
    return [version for version in found if version]


def version_of_api(files: Sequence[tuple[str, File]], told: Mapping[str, Any]) -> str:
    """Return the version of the API whose fields a page has."""
    if not all("size" in file.told for _, file in files):
        return "1.0"
    return "1.4" if "project-status" in told else "1.1"


def in_json(project: str, files: Sequence[tuple[str, File]], told: Mapping[str, Any], up: Callable[[str], str]) -> str:
    """Return a page in JSON."""
    meta = {**told.get("meta", {}), "api-version": version_of_api(files, told)}
    records = [{"filename": file.name, "url": url_of(up, index, file), **file.told} for index, file in files]
    page = {"meta": meta, "name": project, **{key: told[key] for key in told if key != "meta"}, "files": records}
    return json.dumps(page, separators=(",", ":"))


def in_html(
    title: str,
    files: Sequence[tuple[str, File]],
    told: Mapping[str, Any],
    up: Callable[[str], str],
    more: Callable[[str, File], str] = lambda _index, _file: "",
) -> str:
    """Return a page in HTML, with more HTML after each link."""
    rows = ['<!DOCTYPE html><html lang="en"><head>']
    rows.append(f'<meta name="pypi:repository-version" content="{version_of_api(files, told)}">')
    for name, value in told.get("project-status", {}).items():
        if name in {"status", "reason"} and isinstance(value, str):
            suffix = "" if name == "status" else "-reason"
            rows.append(f'<meta name="pypi:project-status{suffix}" content="{escape(value)}">')
    rows.append(f"<title>{escape(title)}</title></head><body><h1>{escape(title)}</h1>\n")
    for index, file in files:
        hashes = file.told.get("hashes") or {}
        algorithm = "sha256" if "sha256" in hashes else next(iter(hashes), "")
        fragment = f"#{algorithm}={hashes[algorithm]}" if algorithm else ""
        said = [f'href="{escape(url_of(up, index, file))}{escape(fragment)}"']
        promised = file.told.get("core-metadata")
        if promised:
            value = "=".join(next(iter(promised.items()))) if isinstance(promised, dict) else "true"
            said.append(f'data-dist-info-metadata="{value}" data-core-metadata="{value}"')
        if "requires-python" in file.told:
            said.append(f'data-requires-python="{escape(file.told["requires-python"])}"')
        yanked = file.told.get("yanked", False)
        if yanked is not False:
            said.append(f'data-yanked="{escape("" if yanked is True else yanked)}"')
        if "gpg-sig" in file.told:
            said.append(f'data-gpg-sig="{str(file.told["gpg-sig"]).lower()}"')
        rows.append(f"{index} <a {' '.join(said)}>{escape(file.name)}</a>{more(index, file)}<br>\n")
    rows.append("</body></html>")
    return "".join(rows)


def url_of(up: Callable[[str], str], index: str, file: File) -> str:
    """Return the URL of a file, from the page."""
    path = file.path if SAFE_PATH.fullmatch(file.path) else quote(file.path, safe="/+!~")
    return f"{up(index)}/{path}"


def way_up(page: str, own: str) -> Callable[[str], str]:
    """Return a function that gives the way from a page, `/user/index/+simple/project/`, to an index."""
    up = "../" * (page.count("/") - 3)
    user = own.partition("/")[0]

    def way(index: str) -> str:
        if index == own:
            return up.removesuffix("/") or "."
        if index.startswith(f"{user}/"):
            return f"{up}../{index.partition('/')[2]}"
        return f"{up}../../{index}"

    return way


def newest_first(files: Iterable[tuple[str, File]]) -> list[tuple[str, File]]:
    """Return files as devpi sorts them for people."""
    return sorted(files, key=lambda each: BasenameMeta(each[1].name, sameproject=True).cmpval, reverse=True)


# --- the answer --------------------------------------------------------------------------------------------------


def content_type_of(accept: Any) -> str:
    """Return the content type of the answer to a request with this `Accept` (RFC 9110, 12.5.1; WebOb reads it)."""
    offers: list[tuple[str, float]] = accept.acceptable_offers(list(OFFERS))
    return OFFERS[offers[0][0]] if offers else "text/html"


class Pages:
    """Answers requests for pages of projects."""

    def __init__(self) -> None:
        """Keep pages in memory."""
        self.kept = Kept(KEPT)
        self.made = 0
        # Who wants the same page waits for the one who makes it.
        self._making = [threading.Lock() for _ in range(MAKERS)]

    def answer(self, view: Any) -> Any:
        """Return the answer to the request of a view of devpi's."""
        request, stage, project = view.request, view.context.stage, view.context.project
        try:
            sources = sources_of(stage, project)
        except stage.UpstreamError as error:
            views.threadlog.error(error.msg)
            views.abort(request, 502, error.msg)
        if not sources:
            views.abort(request, 404, f"The project {project} does not exist.")
        request.lanmirror_changes = min((at.changes for at in sources if at.changes is not None), default=None)
        content_type = content_type_of(request.accept)
        is_for_people = content_type != JSON and not views.is_requested_by_installer(request)
        body, is_packed = (
            (self._for_people(view, stage, project, sources), False)
            if is_for_people
            else self._made(view, stage, project, sources, content_type == JSON)
        )
        response = Response(content_type=content_type, charset="utf-8" if content_type == "text/html" else None)
        if is_packed and takes_gzip(request):
            response.content_encoding = "gzip"
        elif is_packed:
            body = gzip.decompress(body)
        response.body = body
        response.vary = ("Accept", "Accept-Encoding", "User-Agent")
        if stage.ixconfig["type"] == "mirror" and sources[0].serial > 0:
            response.headers["X-PYPI-LAST-SERIAL"] = str(sources[0].serial)
        return response

    def _made(
        self, view: Any, stage: Any, project: Any, sources: Sequence[Source], is_json: bool
    ) -> tuple[bytes, bool]:
        # Their order, names and states: a change of bases is one as well.
        state = tuple((source.index, source.state) for source in sources)
        key = stage.name, str(project), is_json, base_of(view)
        made = self.kept.get(key, state)
        if made is None:
            with self._making[hash(key) % MAKERS]:
                made = self.kept.get(key, state)
                if made is None:
                    pages = [(source.index, *source.page()) for source in sources]
                    files, told = merged(project, [(index, page) for index, page, _ in pages])
                    way = view_way(view, stage)
                    title = f"{stage.name}: links for {project}"
                    text = in_json(project, files, told, way) if is_json else in_html(title, files, told, way)
                    self.made += 1
                    made = packed(state, text.encode(errors="xmlcharrefreplace"))
                    if all(is_whole for *_, is_whole in pages):
                        self.kept.put(key, made)
        return made.content, made.is_packed

    @staticmethod
    def _for_people(view: Any, stage: Any, project: Any, sources: Sequence[Source]) -> bytes:
        """Return the page with the button and the note of devpi's (views.PyPIView._simple_list_project).

        devpi asks each mirror for them whether it has the project; here, nobody is asked for a page again.
        """
        files, told = merged(project, [(source.index, source.page()[0]) for source in sources])
        title = f"{stage.name}: links for {project}"
        counting = {base.name for base in bases.counting(stage, project)}
        mirrors = [base.name for base in stage.sro() if base.ixconfig["type"] == "mirror"]

        def where(index: str, file: File) -> str:
            return f" <small>{escape(origin_of(file, index in mirrors))}, {here(view.xom, index, file)}</small>"

        page = in_html(title, newest_first(files), told, view_way(view, stage), where)
        more = ""
        if counting.intersection(mirrors):
            label = "Refresh" if stage.ixconfig["type"] == "mirror" else "Refresh mirror links"
            more += f'<form action="refresh" method="post"><input name="refresh" type="submit" value="{label}"></form>'
        for index in mirrors:
            if index not in counting:
                more += (
                    "<p><strong>INFO:</strong> Because this project isn't in the <code>mirror_whitelist</code>, "
                    f"no releases from <strong>{index}</strong> are included.</p>"
                )
        for base in bases.counting(stage, project):
            if why := note(base, project):
                more += f"<p><strong>INFO:</strong> {escape(why)}</p>"
        return page.replace("</h1>\n", f"</h1>\n{more}", 1).encode(errors="xmlcharrefreplace")


def origin_of(file: File, is_of_mirror: bool) -> str:
    """Return where a file comes from, in words.

    The page of a mirror that devpi stored before there was our plugin has no URL.
    """
    if not is_of_mirror:
        return "uploaded"
    host = urlsplit(file.url).hostname
    return f"of {host}" if host else "of the upstream"


def here(xom: Any, index: str, file: File) -> str:
    """Return whether a file is stored, in words."""
    return "here" if on_disk(xom, f"{index}/{file.path}").is_file() else "not here yet"


def base_of(view: Any) -> str:
    """Return what the URLs of a page begin with: they are relative to it, unless devpi is told otherwise."""
    if view._use_absolute_urls:
        url: str = view.request.application_url
        return url.rstrip("/")
    path: str = view.request.path_info
    return "../" * (path.count("/") - 3)


def view_way(view: Any, stage: Any) -> Callable[[str], str]:
    """Return a function that gives the way from the page to an index."""
    if view._use_absolute_urls:
        return lambda index: f"{base_of(view)}/{index}"
    return way_up(view.request.path_info, stage.name)


def asked_again(xom: Any, mirrors: Sequence[str], project: Any, page: str) -> Response:
    """Ask the upstreams of mirrors for a project, and lead back to its page; 424 where one gives none."""
    silent = []
    for index in mirrors:
        with xom.keyfs.read_transaction():
            stage = xom.model.getstage(*index.split("/"))
            try:
                _, is_old = mirror.get(stage, project, again=True)
            except stage.UpstreamNotFoundError:
                continue
            except stage.UpstreamError:
                is_old = True
            if is_old:
                silent.append(index)
    if silent:
        said = f"The upstream of {', '.join(silent)} gives no page of {project} now. What is known of it stays.\n"
        return Response(said, status=HTTPStatus.FAILED_DEPENDENCY, content_type="text/plain", charset="utf-8")
    return Redirect(status=HTTPStatus.FOUND, location=page)


def install(xom: Any) -> None:
    """Replace devpi's page of a project, the button on it, and its choice of the format (other pages' as well)."""
    xom.lanmirror_pages = pages = Pages()

    def simple_list_project(self: Any) -> Any:
        """Return the page of a project."""
        views.abort_if_invalid_project(self.request, self.request.matchdict["project"])
        return pages.answer(self)

    def simple_refresh(self: Any) -> Any:
        """Ask the mirrors that count for a project anew: devpi forgets it first, and asks them for private names.

        Not in devpi's transaction, for which each upload waits.
        """
        views.abort_if_invalid_project(self.request, self.request.matchdict["project"])
        stage, project = self.context.stage, self.context.project
        mirrors = [base.name for base in bases.counting(stage, project) if base.ixconfig["type"] == "mirror"]
        page = self.request.path_info.rstrip("/").removesuffix("refresh")
        return later(lambda: asked_again(xom, mirrors, project, page))

    def _select_simple_content_type(request: Any) -> str:
        """Return the format of an answer: devpi knows these two."""
        return JSON if content_type_of(request.accept) == JSON else "text/html"

    replace(views.PyPIView, "simple_list_project", simple_list_project)
    replace(views.PyPIView, "simple_refresh", simple_refresh)
    replace(views, "_select_simple_content_type", _select_simple_content_type)
