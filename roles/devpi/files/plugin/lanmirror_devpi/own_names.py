"""An upload is refused whose project a mirror below the index has: it would take the place of a package from outside.

devpi keeps mirrors from adding to a project of a stage (bases.py); this is the other direction. A project that the
stage or one of its bases has stays its own, whatever turns up outside. `mirror_whitelist` of the index allows a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from devpi_server import views
from devpi_server.normalized import normalize_name
from pyramid.response import Response

from lanmirror_devpi import bases, coming, mirror
from lanmirror_devpi.answers import later
from lanmirror_devpi.replace import replace

# Of the request whose project was looked for.
LOOKED = "lanmirror.looked"


def allowed(stage: Any) -> set[str]:
    """Return the names that an index may have beside its mirrors, by its list, and by those of bases it inherits."""
    inherits = stage.get_whitelist_inheritance() == "union"
    indexes = stage.sro() if inherits else [stage]
    return {name for index in indexes for name in index.ixconfig.get("mirror_whitelist", ())}


def mirrors_to_ask(stage: Any, project: Any) -> list[str]:
    """Return the mirrors that may have a project which the index has not; none where it may have it all the same."""
    if {"*", project} & allowed(stage):
        return []
    counting = list(bases.counting(stage, project))
    if any(base.ixconfig["type"] != "mirror" for base in counting):
        return []
    # Where it is blocked, it comes from nowhere else, and nobody outside has to learn its name.
    return [base.name for base in counting if not coming.of_stage(base).blocks_all_of(project)]


def looked_for(request: Any, stage: str, project: Any, mirrors: Sequence[str]) -> Response:
    """Ask the mirrors for a project; return why it cannot be uploaded, else take the upload.

    Not in devpi's transaction, for which each other upload waits.
    """
    xom = request.registry["xom"]
    for index in mirrors:
        with xom.keyfs.read_transaction():
            base = xom.model.getstage(index)
            try:
                known, _ = mirror.get(base, project)
            except base.UpstreamNotFoundError:
                continue
            except base.UpstreamError:
                return refused(
                    HTTPStatus.FAILED_DEPENDENCY,
                    f"{index} cannot tell now whether it has {project}: try again later",
                )
            if known.page.files:
                # Not 409, which twine takes for a file that is there already, and with --skip-existing for well.
                return refused(
                    HTTPStatus.FORBIDDEN,
                    f"{project} is a project of {index}: take another name, or put it into mirror_whitelist of {stage}",
                )
    request.environ[LOOKED] = project
    answer: Response = request.lanmirror_again()
    return answer


def refused(status: HTTPStatus, why: str) -> Response:
    """Return the answer to an upload that is not taken; clients show the status line."""
    return Response(f"{why}\n", status=f"{int(status)} {why}", content_type="text/plain", charset="utf-8")


def install() -> None:
    """Look for the project of an upload before devpi takes it."""

    def submit(self: Any) -> Any:
        """Take an upload."""
        request, stage = self.request, self.context.stage
        name = request.POST.get("name")
        if isinstance(name, str) and hasattr(stage, "store_releasefile") and request.has_permission("upload"):
            project = normalize_name(name)
            if request.environ.get(LOOKED) != project and (mirrors := mirrors_to_ask(stage, project)):
                return later(partial(looked_for, request, stage.name, project, mirrors))
        return theirs(self)

    theirs = replace(views.PyPIView, "submit", submit)
