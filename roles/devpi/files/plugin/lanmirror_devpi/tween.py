"""What stands between devpi and Nginx: the answer to a request for the page of a project.

Nginx keeps it, so it may not depend on who asks, but for `Accept` and `Accept-Encoding`.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from math import ceil
from typing import Any

from pyramid.response import Response

from lanmirror_devpi.kept import WORTH_COMPRESSING

# A project's page; its groups name the index.
PAGE = re.compile(r"/([^/+]+/[^/+]+)/\+simple/[^/]+/?")
# Seconds for which Nginx may keep that there is no such project.
MISSING_FRESH = 5
# No installer reads these, and Nginx would, each time it sends a page that it kept.
IDLE = ("Expires", "Pragma", "Vary", "X-Accel-Buffering")
UNKNOWN = "The upstream did not give this project, and this server has not seen it before: try again later.\n"
# A replica of devpi's reads the headers that others have no use for (replica.ReplicaThread).
REPLICA = "X-DEVPI-REPLICA-UUID"


class Redirect(Response):
    """An answer whose `Location` stays a path: right under any host, port and scheme (RFC 9110, 10.2.2).

    WebOb makes it a URL by the host of the request, which is Nginx's own.
    """

    @staticmethod
    def _make_location_absolute(environ: Any, value: str) -> str:
        return value


def factory(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """Return the tween (https://docs.pylonsproject.org/projects/pyramid/en/2.0-branch/narr/hooks.html#tweens)."""
    xom = registry["xom"]
    arguments = xom.config.args

    def kept(changes: float | None) -> str:
        """Return how long Nginx may keep a page: it asks anew when a file of it comes of age."""
        fresh, behind = arguments.lanmirror_pages_fresh, arguments.lanmirror_pages_behind
        if changes is not None:
            left = max(1, ceil(changes - time.time()))
            fresh, behind = min(fresh, left), min(behind, max(0, left - fresh))
        return f"s-maxage={fresh}, stale-while-revalidate={behind}, stale-if-error={arguments.lanmirror_max_stale:.0f}"

    def tween(request: Any) -> Any:
        response = handler(request)
        found = PAGE.fullmatch(request.path_info)
        if found is None or request.method not in {"GET", "HEAD"}:
            return response
        if response.status_code == HTTPStatus.BAD_GATEWAY:
            # uv asks again after a 502, for half a minute; a project that nobody has seen cannot be had sooner by that.
            response = Response(
                UNKNOWN, status=HTTPStatus.FAILED_DEPENDENCY, content_type="text/plain", charset="utf-8"
            )
        if REPLICA in request.headers:
            return response
        for name in list(response.headers):
            if name in IDLE or name.lower().startswith("x-devpi-"):
                del response.headers[name]
        if response.status_code in {HTTPStatus.OK, HTTPStatus.NOT_FOUND} and is_of_mirror(request):
            missing = response.status_code == HTTPStatus.NOT_FOUND
            response.headers["Cache-Control"] = (
                f"s-maxage={MISSING_FRESH}" if missing else kept(getattr(request, "lanmirror_changes", None))
            )
        else:
            response.headers["Cache-Control"] = "no-cache"
        if response.location:
            response = Redirect(status=response.status_code, location=re.sub(r"^[a-z]+://[^/]*", "", response.location))
            response.headers["Cache-Control"] = "no-cache"
        return compressed(request, response)

    return tween


def is_of_mirror(request: Any) -> bool:
    """Return whether an answer is of a mirror, by what devpi looked up for it."""
    # Not its property: that would ask the database again, and its transaction is over.
    stage = vars(getattr(request, "context", None) or Response).get("_stage")
    return stage is not None and stage.ixconfig["type"] == "mirror"


def takes_gzip(request: Any) -> bool:
    """Return whether a client says that it takes gzip; one that says nothing is not asked to."""
    return "Accept-Encoding" in request.headers and "gzip" in request.accept_encoding


def compressed(request: Any, response: Any) -> Any:
    """Return a page of some size compressed for who takes it.

    Nginx would not know its length before it has sent it, and would send it in pieces ever after.
    """
    if response.status_code == HTTPStatus.OK and not response.content_encoding and takes_gzip(request):
        page = response.body
        if len(page) >= WORTH_COMPRESSING:
            response.body = gzip.compress(page, compresslevel=6, mtime=0)
            response.content_encoding = "gzip"
    return response
