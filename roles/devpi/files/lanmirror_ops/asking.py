"""Ask devpi over HTTP, Nginx not asked."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

# No answer of devpi's is longer; another program may send for ever.
MOST = 256 << 20


@dataclass(frozen=True)
class Answer:
    """What came."""

    status: int
    text: str

    @property
    def json(self) -> dict[str, Any]:
        """The answer as devpi's JSON, empty where it is none."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def ask(
    url: str,
    path: str,
    *,
    body: Mapping[str, str] | None = None,
    accept: str = "application/json",
    timeout: float = 30,
) -> Answer:
    """Return devpi's answer; with a body to POST, else to GET.

    Raises:
        OSError: There is none.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
    try:
        connection.request(
            "POST" if body else "GET",
            quote(path, safe="/+?=&"),
            json.dumps(body) if body else None,
            {"Accept": accept} | ({"Content-Type": "application/json"} if body else {}),
        )
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(MOST).decode("utf-8", "replace"))
    except http.client.HTTPException as error:
        raise ConnectionResetError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def silence(url: str, timeout: float = 3.0) -> str:
    """Return why devpi does not answer; empty when it does, and it is devpi."""
    try:
        answer = ask(url, "/+api", timeout=timeout)
    except OSError as error:
        return str(error)
    if answer.json.get("type") == "apiconfig":
        return ""
    if answer.status != http.HTTPStatus.OK:
        return f"status {answer.status}"
    return f"another program answers on port {urlsplit(url).port}: `ss -ltnp` names it"


def result(url: str, path: str, timeout: float = 60.0) -> dict[str, Any]:
    """Return the `result` of devpi's answer.

    Raises:
        OSError: There is no answer, or it is another one.
    """
    answer = ask(url, path, timeout=timeout)
    found = answer.json.get("result")
    if answer.status != http.HTTPStatus.OK or not isinstance(found, dict):
        raise OSError(f"status {answer.status}" if answer.status != http.HTTPStatus.OK else "it is not devpi's answer")
    return found


def indexes(url: str, timeout: float = 60.0) -> dict[str, str]:
    """Return the type of each index by user/index, from devpi itself: what is declared may not be applied yet.

    Raises:
        OSError: It does not say.
    """
    return {
        f"{user}/{index}": str(settings["type"])
        for user, about in result(url, "/", timeout).items()
        for index, settings in about.get("indexes", {}).items()
    }


def page(url: str, path: str) -> str:
    """Return the page of a project, empty when devpi has none."""
    with contextlib.suppress(OSError):
        answer = ask(url, f"/{path}", accept="text/html")
        if answer.status == http.HTTPStatus.OK:
            return answer.text
    return ""


def wait(url: str, seconds: float, hopeless: Callable[[], bool] = lambda: False) -> str:
    """Return as soon as devpi answers; else, after so many seconds or when it is `hopeless`, why it does not."""
    end = time.monotonic() + seconds
    while why := silence(url, timeout=30):
        if hopeless() or time.monotonic() > end:
            return why
        time.sleep(0.3)
    return ""
