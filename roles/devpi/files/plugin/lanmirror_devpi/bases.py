"""Which indexes count for a project of a stage: itself and its bases, in the declared order, or an error.

devpi leaves a base out that fails, and serves what the others have: fewer releases, or another package of the name. And
it asks a mirror without a list of projects or not, by whether somebody asked for that project before. Here a base that
counts and fails is an error. A base that says that it has no such project is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from devpi_server import model
from devpi_server.normalized import normalize_name

from lanmirror_devpi.replace import replace


def counting(stage: Any, project: Any) -> Iterator[Any]:
    """Yield the indexes that count for a project: stages that have it, then mirrors, which may have it.

    A project of a stage is private: mirrors do not count for it, unless `mirror_whitelist` has its name
    (https://devpi.net/docs/devpi/devpi/stable/+doc/userman/devpi_concepts.html).
    """
    project = normalize_name(project)
    if not stage.filter_projects([project]):
        return
    union = stage.get_whitelist_inheritance() == "union"
    is_private = is_whitelisted = False
    whitelist: set[str] | None = None
    for base in stage.sro():
        if base.ixconfig["type"] == "mirror":
            if not is_private or is_whitelisted:
                yield base
            continue
        names = set(base.ixconfig.get("mirror_whitelist", ()))
        whitelist = names if whitelist is None else whitelist | names if union else whitelist & names
        exists = base.has_project_perstage(project)
        if whitelist & {"*", project}:
            is_whitelisted = True
        elif exists:
            is_private = True
        if exists:
            yield base


def install() -> None:
    """Replace the method of devpi's that asks the bases: for links, versions, and the data of a version."""

    def op_sro_check_mirror_whitelist(self: Any, opname: str, **kw: Any) -> Iterator[tuple[Any, Any]]:
        """Yield each index that counts for a project, and what its method `opname` gives."""
        for base in counting(self, kw["project"]):
            try:
                found = getattr(base, opname)(**kw)
            except self.UpstreamNotFoundError:
                continue
            yield base, found

    replace(model.BaseStage, "op_sro_check_mirror_whitelist", op_sro_check_mirror_whitelist)
