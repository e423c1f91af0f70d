"""The real Nginx with the files of the roles, before the engine's mirror and its upstream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.engine.lab import Lab
from tests.roles.conda_site import CondaSite, conda_site


@contextmanager
def before(lab: Lab, **variables: Any) -> Iterator[CondaSite]:
    """Run the site before the mirror and the upstream of a lab, with slices of 1 MiB; the engine is told of it.

    Args:
        lab: whose; a site that was there before leaves its cache.
        variables: of the roles.
    """
    upstream = {"conda_mirror_upstream": {key: lab.settings["upstream"][key] for key in ("repo", "cloud")}}
    folder = lab.folder / "site"
    folder.mkdir(exist_ok=True)
    with conda_site(
        folder,
        variables_of=lambda ports: upstream,
        conda_mirror_repos=["main"],
        conda_mirror_arches=["noarch", "linux-64"],
        conda_mirror_cloud=["conda-forge/noarch", "conda-forge/linux-64"],
        conda_mirror_working_dir=str(lab.mirror),
        # The upstream is named by an address.
        __conda_mirror_resolvers=[],
        **variables,
    ) as site:
        lab.settings |= {"on_demand": True, "cache": f"http://127.0.0.1:{site.port - 1}/+kept"}
        yield site
