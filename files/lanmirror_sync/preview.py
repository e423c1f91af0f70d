"""`plan`: what a sync would fetch, and what is due to go. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from lanmirror_sync import listing
from lanmirror_sync.answers import UnreachableError
from lanmirror_sync.config import NONE, Options
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.installers import Installers
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.plan import due
from lanmirror_sync.progress import amount
from lanmirror_sync.report import Report
from lanmirror_sync.survey import Absent, Finding, Survey, Unchanged, Unusable
from lanmirror_sync.sweep import RETIRED, retired
from lanmirror_sync.upstream import Search

POLL_SECONDS = 0.1


class Preview:
    """A look at what a sync would do."""

    def __init__(self, mirror: Mirror, options: Options, searches: Sequence[Search], fetcher: Fetcher) -> None:
        self._mirror = mirror
        self._options = options
        self.report = Report(asked=len(searches))
        self._survey = Survey(mirror, options, searches)
        wanted = [folder for folder in mirror.config.folders if fnmatchcase(folder, options.only)]
        self._installers = Installers(mirror, fetcher, self.report, wanted)

    def lines(self) -> Iterator[str]:
        """Yield what is to be said, a line for each subdir and folder, and the sum.

        Raises:
            UnreachableError: no index could be asked for.
        """
        findings: list[Finding] = []
        while self._survey.pending:
            for outcome in self._survey.ready(POLL_SECONDS):
                path = str(outcome.subdir.path)
                match outcome:
                    case Finding():
                        findings.append(replace(outcome, index=None))
                        for message in outcome.refused:
                            self.report.fail(path, message)
                    case Unchanged():
                        self.report.unchanged[path] = outcome.standing.held or 0
                        yield f"{path}: 0 to fetch, unchanged; {outcome.standing.held} held{self._going(path)}"
                    case Absent():
                        yield f"{path}: the upstream does not have it"
                    case Unusable():
                        self.report.unreachable += outcome.unreachable
                        self.report.crashes += [outcome.crash] if outcome.crash else []
                        self.report.fail(path, outcome.message)
        if self.report.asked and self.report.unreachable == self.report.asked:
            raise UnreachableError(f"no index of the upstream can be reached, nothing was changed: {self.report.first}")
        downloads = list(self._installers.all())
        for finding in sorted(findings, key=lambda finding: finding.subdir.path):
            yield self._line(finding)
        yield from self._on_demand()
        size = sum(download.expected.size or 0 for download in downloads)
        yield f"installers: {len(downloads)} to fetch, {amount(size)}"
        yield from self._retired()
        held = [finding.plan for finding in findings if finding.subdir.hold != NONE]
        yield f"in all: {amount(size + sum(plan.download_bytes for plan in held))}"

    def _line(self, finding: Finding) -> str:
        plan = finding.plan
        unverified = f", {len(plan.check)} to hash" if plan.check else ""
        hidden = len(plan.hidden.blocked) + len(plan.hidden.young)
        unverified += f"; {hidden} hidden by rules" if hidden else ""
        unwanted = f"; {len(plan.unwanted)} excluded, to be deleted" if plan.unwanted else ""
        others = len(plan.orphans) - len(plan.unwanted)
        orphans = f"; {others} not named any longer, to be deleted" if others else ""
        if finding.subdir.hold == NONE:
            here = plan.held + len(plan.check)
            rest = f", of which none is to be; --delete takes them{unwanted}{orphans}" if here else ""
            return f"{finding.subdir.path}: 0 to fetch, {plan.files} on demand; {here} held{rest}"
        fetch = f"{plan.files} to fetch, {amount(plan.download_bytes)}"
        return f"{finding.subdir.path}: {fetch}; {plan.held} held{unverified}{unwanted}{orphans}"

    def _on_demand(self) -> Iterator[str]:
        """Yield a line for each folder of installers that come on demand."""
        for dist, found in self._installers.listings.items():
            if dist in self._mirror.config.listed:
                named, here = found.named(), [name for name, _, _ in listing.held(self._mirror, dist)]
                rest = ", of which none is to be; --delete takes them" if here else ""
                yield f"{dist}: 0 to fetch, {len(named.keys() - {*here})} on demand; {len(here)} held{rest}"

    def _going(self, path: str) -> str:
        orphans = len(self._mirror.memory.orphans(path))
        return f"; {orphans} not named any longer, to be deleted" if orphans else ""

    def _retired(self) -> Iterator[str]:
        """Yield what was taken out of the configuration and is here still."""
        grace = self._mirror.config.delete_grace_hours
        since = self._mirror.memory.orphans(RETIRED)
        for item in retired(self._mirror):
            path = str(item.path)
            if fnmatchcase(path, self._options.only):
                began, _ = due(since, [path], time.time(), grace)
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(began[path] + grace * 3600))
                files = f"{item.files} files, {amount(item.size)}"
                yield f"{path}: not configured any more; --delete takes {files}, from {when} on"
