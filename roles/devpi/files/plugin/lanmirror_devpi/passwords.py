"""How many passwords are checked at a time, and who may upload.

To check a password costs tens of MiB and a tenth of a second by design. A few are checked at a time, a few more wait,
and who finds the queue full is told to come again: devpi's memory and threads stay for all others. What was found is
remembered for a short time, as a keyed hash in memory, so that a client which sends its password with each request
costs little. It is bound to the stored hash: with another password, nothing of it is true any more.

Passwords are checked before devpi begins its transaction: a login would else keep all others from writing.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any

import itsdangerous
from devpi_server import model
from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.interfaces import ISecurityPolicy
from pyramid.response import Response
from pyramid.security import forget

from lanmirror_devpi.replace import replace

AT_ONCE, QUEUED = 2, 16
# Seconds for which it is remembered that a password is right, and that it is wrong; and of how many.
RIGHT, WRONG = 60.0, 10.0
REMEMBERED = 1024
RETRY_AFTER = "2"
# What Nginx may ask before it takes a body.
UPLOADS = {"upload", "toxresult_upload"}

Found = tuple[bool, str | None]


class BusyError(Exception):
    """Too many passwords wait to be checked."""


class Passwords:
    """Checks passwords, a few at a time."""

    def __init__(self, check: Callable[..., Found]) -> None:
        """Check by `check`, of devpi's."""
        self._check = check
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(AT_ONCE)
        self._flights: dict[bytes, Future[Found]] = {}
        self._known: OrderedDict[bytes, tuple[float, Found]] = OrderedDict()

    def _tag(self, password: str, pwhash: str, salt: str | None) -> bytes:
        text = "\0".join((salt or "", pwhash, password))
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")

    def check(self, password: str, pwhash: str, salt: str | None = None) -> Found:
        """Return whether a password is right, and its new hash where that is due; BusyError where too many wait."""
        tag = self._tag(password, pwhash, salt)
        with self._lock:
            until, found = self._known.get(tag, (0.0, (False, None)))
            if time.monotonic() < until:
                return found
            flight = self._flights.get(tag)
            if first := flight is None:
                if len(self._flights) >= AT_ONCE + QUEUED:
                    raise BusyError
                flight = self._flights[tag] = Future()
        if not first:
            # The same password is just being checked for another request of that client.
            return flight.result()
        try:
            with self._slots:
                found = self._check(password, pwhash, salt)
        except BaseException as error:
            flight.set_exception(error)
            raise
        else:
            flight.set_result(found)
            return found
        finally:
            with self._lock:
                del self._flights[tag]
                if flight.exception() is None:
                    self._known[tag] = time.monotonic() + (RIGHT if found[0] else WRONG), found
                    self._known.move_to_end(tag)
                    if len(self._known) > REMEMBERED:
                        self._known.popitem(last=False)

    def hashed(self, make: Callable[[str], str], password: str) -> str:
        """Return the hash of a new password."""
        with self._slots:
            return make(password)


def credentials_of(xom: Any, request: Any) -> tuple[str, str] | None:
    """Return the name and password that a request carries, in whatever way."""
    if request.method == "POST" and request.environ.get("PATH_INFO") == "/+login":
        try:
            told = request.json_body
            return str(told["user"]), str(told["password"])
        except (ValueError, KeyError, TypeError):
            return None
    found: tuple[str, str] | None = xom.config.hook.devpiserver_get_credentials(request=request)
    return found


def is_token(request: Any, password: str) -> bool:
    """Return whether what is in the place of a password is a token of a login (auth.Auth._get_auth_status)."""
    auth = request.registry.getUtility(ISecurityPolicy).auth
    try:
        auth.serializer.loads(password, max_age=auth.LOGIN_EXPIRATION)
    except itsdangerous.SignatureExpired:
        return True
    except itsdangerous.BadData:
        return False
    return True


def factory(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """Return the tween (https://docs.pylonsproject.org/projects/pyramid/en/2.0-branch/narr/hooks.html#tweens)."""
    xom = registry["xom"]

    def tween(request: Any) -> Any:
        credentials = credentials_of(xom, request)
        if credentials:
            with xom.keyfs.read_transaction():
                user = xom.model.get_user(credentials[0])
                about = dict(user.key.get()) if user is not None else {}
            if about.get("pwhash") and not is_token(request, credentials[1]):
                try:
                    xom.lanmirror_passwords.check(credentials[1], about["pwhash"], about.get("pwsalt"))
                except BusyError:
                    return Response(
                        "Too many passwords are being checked: try again.\n",
                        status=HTTPStatus.SERVICE_UNAVAILABLE,
                        content_type="text/plain",
                        charset="utf-8",
                        headers={"Retry-After": RETRY_AFTER},
                    )
        return handler(request)

    return tween


def may_upload(context: Any, request: Any) -> Response:
    """Return whether who asks may upload to an index, before any body is read: 204, or 401, or 403.

    A user is told with `X-Lanmirror-Status: 404` where nobody may, since it is a mirror or no index.
    """
    permission = request.params.get("permission", "upload")
    stage = context.model.getstage(context.username, context.index)
    if stage is not None and permission in UPLOADS and request.has_permission(permission):
        return Response(status=HTTPStatus.NO_CONTENT)
    if request.authenticated_userid:
        answer = Response(status=HTTPStatus.FORBIDDEN)
        if stage is None or stage.ixconfig["type"] == "mirror":
            answer.headers["X-Lanmirror-Status"] = str(int(HTTPStatus.NOT_FOUND))
        return answer
    answer = Response(status=HTTPStatus.UNAUTHORIZED)
    answer.headers.update(forget(request))
    return answer


def configure(pyramid_config: Any) -> None:
    """Add the view."""
    pyramid_config.add_route("lanmirror_may_upload", "/+lanmirror/may-upload/{user}/{index}")
    pyramid_config.add_view(may_upload, route_name="lanmirror_may_upload", request_method="GET")


def install(xom: Any) -> None:
    """Put this in the place of devpi's own."""

    def verify_and_update_password_hash(password: str, pwhash: str, salt: str | None = None) -> Found:
        """Return whether a password is right, and its new hash where that is due, as devpi's own."""
        try:
            found: Found = xom.lanmirror_passwords.check(password, pwhash, salt)
        except BusyError as error:
            raise HTTPServiceUnavailable(headers={"Retry-After": RETRY_AFTER}) from error
        return found

    def hash_password(password: str) -> str:
        """Return the hash of a new password, as devpi's own."""
        return str(xom.lanmirror_passwords.hashed(make, password))

    check = replace(model, "verify_and_update_password_hash", verify_and_update_password_hash)
    make = replace(model, "hash_password", hash_password)
    xom.lanmirror_passwords = Passwords(check)
