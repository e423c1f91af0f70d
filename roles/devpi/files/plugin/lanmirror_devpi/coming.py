"""What comes in: the settings of a mirror by which its files are hidden, and what devpi makes of them.

The rules themselves are in policy.py. They hold for the pages of the mirror and of each index that inherits it, for its
files and their metadata, and on replicas, which have the same settings. The list of known malware holds for each
mirror.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devpi_common.metadata import splitbasename

from lanmirror_devpi import malware, policy, setting
from lanmirror_devpi.malware import Listed
from lanmirror_devpi.page import Page
from lanmirror_devpi.policy import Policy, Refusal

MIN_AGE, UNDATED, BLOCK, ALLOW = "min_age_days", "min_age_undated", "block", "allow"
DEFAULTS: Mapping[str, Any] = {MIN_AGE: 0, UNDATED: policy.HIDDEN, BLOCK: "", ALLOW: ""}
# How many pages it is remembered of which files come of age, and when: most have none.
AGES = 10_000


@dataclass(frozen=True, eq=False)
class Applied:
    """The list of known malware that counts.

    Attributes:
        listed: The list.
        mark: Differs where it says something else of what is here: a new list that does not sets no file aside.
    """

    listed: Listed = malware.NONE
    mark: str = ""


lock = threading.Lock()
applied = Applied()
policies: dict[str, tuple[tuple[Any, ...], Policy]] = {}
ages: OrderedDict[tuple[str, str], tuple[float, ...]] = OrderedDict()


def policy_of(index: str, settings: Mapping[str, Any]) -> Policy:
    """Return the rules of an index, made once for its settings."""
    known_malware = applied
    told = (*(settings.get(key, default) for key, default in DEFAULTS.items()), known_malware)
    # No lock: at the worst, two threads make the same.
    known = policies.get(index)
    if known is None or known[0] != told:
        days, undated, block, allow, _ = told
        rules = block.splitlines(), allow.splitlines()
        made = Policy.of(index, days, undated, *rules, listed=known_malware.listed, mark=known_malware.mark)
        known = policies[index] = (told, made)
    return known[1]


def of_stage(stage: Any) -> Policy:
    """Return the rules of an index; one that is no mirror has none."""
    return policy_of(stage.name, stage.ixconfig if stage.ixconfig["type"] == "mirror" else {})


def apply(listed: Listed, mark: str) -> None:
    """Let a list of known malware count from now on."""
    global applied  # noqa: PLW0603 - replaced as a whole, so that nobody sees a half
    applied = Applied(listed, mark)


def page_of(stage: Any, known: Any) -> Page:
    """Return what is shown of a stored page now."""
    rules = of_stage(stage)
    page: Page = known.page
    return policy.shown(rules, page, time.time()).page if rules.key else page


def comes(rules: Policy, known: Any, now: float) -> float | None:
    """Return when the next hidden file of a stored page comes of age (seconds since the epoch), None for never.

    Between two such times, the page by the rules is the same.
    """
    if not rules.min_age_days:
        return None
    key = rules.key, known.mark
    with lock:
        times = ages.get(key)
    if times is None:
        times = policy.shown(rules, known.page, now).comes
    with lock:
        ages[key] = times
        ages.move_to_end(key)
        while len(ages) > AGES:
            ages.popitem(last=False)
    return next((at for at in times if at > now), None)


@dataclass(frozen=True)
class About:
    """What the rules ask of a file."""

    project: str
    name: str
    uploaded: Any = None

    def refusal(self, rules: Policy, *, aged: bool = True) -> Refusal | None:
        """Return why it is not given now, None where it may be; `aged` is whether its age counts."""
        return rules.refusal(self.project, self.name, self.uploaded, time.time(), aged=aged)


def about(path: str, meta: Mapping[str, Any], known: Any) -> About:
    """Return what is known of a file.

    Args:
        path: Of its URL, without the first slash.
        meta: Its entry, empty for none.
        known: What the page of its project tells (entries.Known), None where it stands on none.
    """
    name = path.rpartition("/")[2]
    if known:
        return About(known.project, name, known.file.told.get("upload-time"))
    return About(meta.get("project") or project_in(name), name)


def project_in(name: str) -> str:
    """Return the project that the name of a file tells, "" where it tells none."""
    try:
        project: str = splitbasename(name, checkarch=False)[0]
    except ValueError:
        return ""
    return project


def install() -> None:
    """Make the four settings of mirrors.

    A list is stored as one text, a rule a line: devpi copies the settings for each request, and a text costs nothing.
    """
    setting.add(DEFAULTS, normalized)


def normalized(key: str, value: Any) -> int | str:
    """Return the value of one of our settings as it is stored; RuleError for a wrong one."""
    if key == MIN_AGE:
        text = "" if isinstance(value, bool) else str(value).strip()
        days = int(text) if text.isascii() and text.isdigit() else policy.MAX_DAYS + 1
        if days > policy.MAX_DAYS:
            raise policy.RuleError(f"{key} is {value!r}: it must be a whole number from 0 to {policy.MAX_DAYS}")
        return days
    if key == UNDATED:
        if value not in {policy.HIDDEN, policy.SHOWN}:
            raise policy.RuleError(f"{key} is {value!r}: allowed are {policy.HIDDEN}, {policy.SHOWN}")
        return str(value)
    texts = value.splitlines() if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise policy.RuleError(f"{key} must be a list of rules, or a text with a rule a line")
    rules = [text.strip() for text in texts if text.strip()]
    for rule in rules:
        try:
            policy.parse(rule)
        except policy.RuleError as error:
            raise policy.RuleError(f"{key} has {rule!r}: {error}") from None
    return "\n".join(rules)
