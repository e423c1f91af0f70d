"""How a subdir stands: what is remembered of it from run to run."""

from __future__ import annotations

import msgspec

from lanmirror_sync.config import ALL


class Standing(msgspec.Struct, frozen=True, rename={"size": "bytes"}):
    """How a subdir stood at the end of its part of the last run. Times are Unix time in seconds.

    Attributes:
        url: of the index that was published last, with its form.
        etag: of that answer.
        last_modified: likewise.
        trust: until when the two are believed, where the upstream says by them that nothing changed.
        sha256: of the index as it was sent, in lower-case hexadecimal; "" where none was published yet.
        form: in which it was sent, see `upstream.Sent`.
        stale: validator of a compressed index that was left unused, being older than the plain one beside it.
        exclude: the configuration's, as of then.
        rules: `Rules.key` of the subdir's, as of then; "" for none.
        comes: when the next of what these hide comes of age; None for never.
        recipe: `publish.RECIPE`, as of then.
        complete: whether there is nothing to do until the upstream's index changes.
        on_demand: whether the served index names what is not held as well, since the site fetches that on demand.
        hold: which packages are held, as of then; see `config.Entry`.
        choice: `Finding.choice`, as of then.
        indexed: with `on_demand`, whether there is nothing to do for the index alone until the upstream's changes.
        listed: packages that the upstream's index names; None where that is not known.
        named: packages that the served index names.
        held: of these, the ones that are here; None where nothing is known of it.
        size: of the ones that are here, in bytes.
        missing: packages that could not be had by the last sync.
        refused: why records of the index were left out, a message each.
        published: when the index was last put in place.
        checked: when the upstream was last asked.
        succeeded: when that last left the subdir in sync.
        failures: of the last sync, a message each.
        index_failures: of the last look at the upstream's index, likewise.
        stamps: `publish.stamps` at the end of it.
    """

    url: str = ""
    etag: str = ""
    last_modified: str = ""
    trust: float = 0.0
    sha256: str = ""
    form: str = ""
    stale: str = ""
    exclude: list[str] = []
    rules: str = ""
    comes: float | None = None
    recipe: str = ""
    complete: bool = False
    on_demand: bool = False
    hold: str = ALL
    choice: str = ""
    indexed: bool = False
    listed: int | None = None
    named: int = 0
    held: int | None = None
    size: int = 0
    missing: int = 0
    refused: list[str] = []
    published: float | None = None
    checked: float | None = None
    succeeded: float | None = None
    failures: list[str] = []
    index_failures: list[str] = []
    stamps: dict[str, list[int]] = {}

    def encode(self) -> bytes:
        """Return the JSON to keep it as."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: str | bytes) -> Standing:
        """Return what was kept; nothing known where it is damaged, so that all is looked at anew."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (ValueError, RecursionError):
            return cls()
