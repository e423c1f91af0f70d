"""Requests to end: a run that is asked to does so in order, and says so."""

from __future__ import annotations

import signal
from types import FrameType

# What a machine that is shut down, a terminal that is closed, and a user at the keyboard send.
ASKED_TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class EndedError(BaseException):
    """The process was asked to end. Not an `Exception`: nothing but the end of the program may catch it.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}; what is served is whole, and the next run goes on")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code: what a shell tells of a process that a signal ended."""
        return 128 + self.number


def listen() -> None:
    """Raise EndedError in the main thread when the process is asked to end; a second request ends it at once."""
    for number in ASKED_TO_END:
        # One that is ignored (nohup) stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    for each in ASKED_TO_END:
        if signal.getsignal(each) is _end:
            signal.signal(each, signal.SIG_DFL)
    raise EndedError(number)
