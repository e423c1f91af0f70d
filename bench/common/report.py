"""Figures as Markdown: a table for each scenario, and its bars beside the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from bench.common.cost import Cost

MIB = 1 << 20


class Tabled(Protocol):
    """A row of a table."""

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the first, which has the names."""

    def cells(self, first: Any) -> Sequence[str]:
        """Return all cells; `first` is the row that this one is compared with."""


def label(name: str, wrong: str) -> str:
    """Return the name of a row, with its fault."""
    return f"{name} (**{wrong}**)" if wrong else name


def spread(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """Return the least and the greatest."""
    if len(values) == 1:
        return "one run"
    return f"{min(values):,.{digits}f}, {max(values):,.{digits}f} {unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """The costs of one tool, in all its runs.

    Attributes:
        name: the tool, and how it was run.
        costs: of each run.
        wrong: the fault of a run; "" where all did their task.
    """

    name: str
    costs: Sequence[Cost]
    wrong: str = ""

    @property
    def seconds(self) -> float:
        """The median time."""
        return median(cost.seconds for cost in self.costs)

    @property
    def cpu_seconds(self) -> float:
        """The median of the processor time, of all the tool's processes."""
        return median(cost.cpu_seconds for cost in self.costs)

    @property
    def peak_bytes(self) -> int:
        """The most memory of any run."""
        return max(cost.peak_bytes for cost in self.costs)

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("median", "from, to", "CPU", "peak memory", "time ÷ first row's")

    def cells(self, first: Row) -> Sequence[str]:
        """Return all cells, beside the first row's."""
        return (
            label(self.name, self.wrong),
            f"{self.seconds:.2f} s",
            spread([cost.seconds for cost in self.costs], "s"),
            f"{self.cpu_seconds:.2f} s",
            f"{self.peak_bytes / MIB:.0f} MiB",
            f"{self.seconds / first.seconds:.2f}",
        )


@dataclass(frozen=True)
class FarRow:
    """Runs of one kind, with an upstream behind a long way.

    Attributes:
        name: of the row.
        costs: of each run.
        sent: what the upstream sent in each, in bytes.
        wrong: the fault of a run.
    """

    name: str
    costs: Sequence[Cost]
    sent: Sequence[int]
    wrong: str = ""

    @property
    def seconds(self) -> float:
        """The median time of a run."""
        return median(cost.seconds for cost in self.costs)

    @property
    def bytes(self) -> float:
        """The median of what the upstream sent in a run."""
        return median(self.sent)

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("runs", "median", "from, to", "from the upstream", "time ÷ first row's")

    def cells(self, first: FarRow) -> Sequence[str]:
        """Return all cells, beside the first row's."""
        times = [cost.seconds for cost in self.costs]
        return (
            label(self.name, self.wrong),
            str(len(times)),
            f"{self.seconds:.2f} s",
            f"{min(times):.2f}, {max(times):.2f} s",
            f"{self.bytes / MIB:.1f} MiB",
            f"{self.seconds / first.seconds:.2f}",
        )


@dataclass(frozen=True)
class Bar:
    """A target, and the result beside it.

    Attributes:
        text: in words.
        figure: the result, with its unit.
        met: whether it holds; None for a figure without a bar.
    """

    text: str
    figure: str
    met: bool | None


def at_most(text: str, value: float, limit: float, unit: str) -> Bar:
    """Return a bar that a value must not exceed."""
    return Bar(text, f"{value:.2f} {unit}", value <= limit)


def at_least(text: str, value: float, limit: float, unit: str) -> Bar:
    """Return a bar that a value must reach."""
    return Bar(text, f"{value:.2f} {unit}", value >= limit)


@dataclass(frozen=True)
class Result:
    """A scenario's outcome.

    Attributes:
        title: the task.
        rows: the first is the one that the others are compared with.
        bars: its targets.
        notes: paragraphs or lists to print below.
    """

    title: str
    rows: Sequence[Tabled]
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        """Return it as a section."""
        lines = [f"## {self.title}", ""]
        if self.rows:
            head = self.rows[0].head()
            lines += [f"| | {' | '.join(head)} |", f"|---|{'--:|' * len(head)}"]
            lines += [f"| {' | '.join(row.cells(self.rows[0]))} |" for row in self.rows]
        if self.bars:
            lines += ["", "| target | result | |", "|---|--:|---|"]
            says = {True: "met", False: "**not met**", None: ""}
            lines += [f"| {bar.text} | {bar.figure} | {says[bar.met]} |" for bar in self.bars]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"
