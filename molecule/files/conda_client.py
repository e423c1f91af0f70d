"""A Conda client for a workstation: channels from a .condarc as conda reads it, and py-rattler to solve and install.

python conda_client.py PREFIX CACHE CHANNEL... -- SPEC...
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import rattler
import yaml

CONDARC = Path("/etc/conda/.condarc")


def channel_urls(condarc: dict[str, Any], name: str) -> list[str]:
    """Give the URLs that a channel's name stands for.

    Source: conda's documentation, "Using the .condarc conda configuration file", sections default_channels,
    custom_channels and channel_alias: `defaults` is the list `default_channels`; a name below `custom_channels` is
    appended to the base URL there; any other is appended to `channel_alias`; a URL is itself.
    """
    if "://" in name:
        return [name]
    if name == "defaults":
        return [url for entry in condarc["default_channels"] for url in channel_urls(condarc, entry)]
    base = condarc.get("custom_channels", {}).get(name) or condarc.get("channel_alias", "https://conda.anaconda.org")
    return [f"{base.rstrip('/')}/{name}"]


async def install(prefix: str, cache: Path, urls: list[str], specs: list[str]) -> None:
    """Solve for Linux, download into a cache of its own, and install into a prefix."""
    gateway = rattler.Gateway(cache_dir=cache / "repodata")
    records = await rattler.solve(urls, specs, gateway=gateway, platforms=["linux-64", "noarch"])
    for record in sorted(records, key=lambda record: record.url):
        print(record.url)
    await rattler.install(records, prefix, cache_dir=cache / "packages", show_progress=False)


def main(arguments: list[str]) -> None:
    """Install, and print the URLs of the packages that were chosen."""
    prefix, cache, *rest = arguments
    split = rest.index("--")
    condarc = yaml.safe_load(CONDARC.read_text())
    urls = [url for name in rest[:split] for url in channel_urls(condarc, name)]
    print("channels:", *urls, file=sys.stderr)
    asyncio.run(install(prefix, Path(cache), urls, rest[split + 1 :]))


if __name__ == "__main__":
    main(sys.argv[1:])
    # Without the interpreter's end: py-rattler's threads may still be at work on their objects then, and on Python
    # 3.13 one run in twelve crashed there, after all was done. An exception above ends with a traceback as ever.
    sys.stdout.flush()
    os._exit(0)
