"""The list of known malware in the form of OSV's API, for uv's own check: it asks nobody outside then.

That is `POST v1/querybatch` (https://google.github.io/osv.dev/post-v1-querybatch/), of packages of PyPI by name and
version. What cannot be judged is an error, and so is each question while there is no list: an answer without advisories
says that a package is not known as malware.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from packaging.utils import canonicalize_name
from pyramid.response import Response

from lanmirror_devpi import coming
from lanmirror_devpi.malware import Listed

PATH = "/+malware/v1/querybatch"
ECOSYSTEM = "PyPI"


def results(listed: Listed, told: Any) -> list[dict[str, Any]]:
    """Return the answers to questions: for each, the advisories that name that version, or any where none is told.

    Raises:
        ValueError: They are not as OSV's API has them, or of something else than packages of PyPI.
    """
    try:
        return [result(listed, query["package"], query.get("version")) for query in told["queries"]]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("each query must have a package with its name and ecosystem, and a version") from None


def result(listed: Listed, package: Any, version: Any) -> dict[str, Any]:
    """Return the answer to one question."""
    if package["ecosystem"] != ECOSYSTEM:
        raise ValueError(f"only packages of ecosystem {ECOSYSTEM} can be asked for")
    if not isinstance(version, str | None):
        raise TypeError("a version must be a text")
    found = listed.ids(canonicalize_name(package["name"]), version)
    return {"vulns": [{"id": each} for each in found]} if found else {}


def answer(request: Any) -> Response:
    """Return the answer to a request."""
    listed = coming.applied.listed
    if not listed.digest:
        return refusal(HTTPStatus.NOT_FOUND, "this server has no list of known malware: set devpi_malware_list")
    try:
        return Response(json_body={"results": results(listed, request.json_body)})
    except ValueError as error:
        return refusal(HTTPStatus.BAD_REQUEST, str(error))


def refusal(status: HTTPStatus, why: str) -> Response:
    """Return an error as OSV's API has it."""
    return Response(json_body={"code": int(status), "message": why}, status=int(status))


def configure(pyramid_config: Any) -> None:
    """Add the view."""
    pyramid_config.add_route("lanmirror_osv", PATH)
    pyramid_config.add_view(answer, route_name="lanmirror_osv", request_method="POST")
