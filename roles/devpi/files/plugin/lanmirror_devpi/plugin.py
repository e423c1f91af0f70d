"""The hooks of devpi that lanmirror implements (devpi_server.hookspecs)."""

from __future__ import annotations

import logging
from typing import Any

from devpi_server.config import hookimpl
from pyramid.tweens import INGRESS

from lanmirror_devpi import (
    bases,
    coming,
    entries,
    files,
    flat,
    held,
    mirror,
    near,
    osv,
    outside,
    own_names,
    passwords,
    places,
    replica,
    uploaded,
    view,
)
from lanmirror_devpi.together import Together
from lanmirror_devpi.told import Told


@hookimpl
def devpiserver_add_parser_options(parser: Any) -> None:
    """Add our options, which stand in devpi-server.yml as devpi's own do."""
    held.configure()
    group = parser.addgroup("lanmirror")
    group.addoption(
        "--lanmirror-max-stale",
        type=float,
        default=1296000.0,
        help="seconds after which a mirror's page is an error that its upstream has not confirmed",
    )
    group.addoption(
        "--lanmirror-page-timeout",
        type=float,
        default=60.0,
        help="seconds after which a page is given up that still comes from the upstream",
    )
    group.addoption(
        "--lanmirror-host-pause",
        type=float,
        default=60.0,
        help="seconds for which one of several upstreams is left alone that failed",
    )
    group.addoption(
        "--lanmirror-file-silence",
        type=float,
        default=60.0,
        help="seconds without a byte after which a file's download has broken off, and goes on",
    )
    group.addoption(
        "--lanmirror-pages-fresh",
        type=int,
        default=60,
        help="seconds for which Nginx may take a mirror's page for fresh",
    )
    group.addoption(
        "--lanmirror-pages-behind",
        type=int,
        default=3600,
        help="seconds after that for which Nginx may show it, and ask for a newer one only then",
    )
    group.addoption(
        "--lanmirror-upstreams",
        default="",
        help="file that says which upstreams answer, for the watchdog; empty: none",
    )
    group.addoption(
        "--lanmirror-malware",
        default="",
        help="file with the list of known malware, which no mirror shows; empty: none",
    )


@hookimpl
def devpiserver_cmdline_run(xom: Any) -> None:
    """Put our functions into devpi before it starts; return None, so that it goes on."""
    arguments = xom.config.args
    xom.lanmirror_together = Together(xom)
    mirror.install(
        xom,
        max_stale=arguments.lanmirror_max_stale,
        limit=arguments.lanmirror_page_timeout,
        pause=arguments.lanmirror_host_pause,
        told=Told(arguments.lanmirror_upstreams),
    )
    flat.install()
    outside.install()
    places.install()
    near.install(xom)
    coming.install()
    entries.install(xom)
    held.install(xom, arguments.lanmirror_malware)
    files.install(xom)
    own_names.install()
    passwords.install(xom)
    # By default waitress waits with select(2), which knows no more than 1024 open files.
    xom.config.waitress_info["kwargs"]["asyncore_use_poll"] = True
    replica.install()
    bases.install()
    uploaded.install()
    view.install(xom)
    # The pages of the files promise it where it is.
    arguments.enable_core_metadata = True
    logging.getLogger().addFilter(is_worth_a_line)


@hookimpl
def devpiserver_pyramid_configure(config: Any, pyramid_config: Any) -> None:
    """Put our tweens before devpi's own.

    With one of the two places alone, Pyramid puts its own tween for exceptions before devpi's, whose transactions then
    end without a commit: devpi answers by raising.
    """
    passwords.configure(pyramid_config)
    osv.configure(pyramid_config)
    for module in ("tween", "passwords", "files"):
        pyramid_config.add_tween(
            f"lanmirror_devpi.{module}.factory", under=INGRESS, over="devpi_server.views.tween_request_logging"
        )


@hookimpl
def devpiserver_metrics(request: Any) -> list[tuple[str, str, float]]:
    """Return what `/+status` tells of pages beside devpi's own figures."""
    pages = request.registry["xom"].lanmirror_pages
    return [
        ("lanmirror_pages_made", "counter", pages.made),
        ("lanmirror_pages_kept_bytes", "gauge", pages.kept.size),
    ]


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Return whether a record goes to the journal: not the question whether devpi is there, every few seconds."""
    return not record.getMessage().endswith("GET /+api")
