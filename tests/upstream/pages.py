"""Installer pages as upstreams show them: the official table, and the listings of Nginx."""

from __future__ import annotations

import hashlib
import html
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote


def official(title: str, files: Iterable[Path], *, algorithm: str = "sha256") -> str:
    """Return a page like the official one: a table with name, size, date and hash."""
    rows = []
    for file in files:
        status = file.stat()
        digest = hashlib.new(algorithm, file.read_bytes(), usedforsecurity=False).hexdigest()
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status.st_mtime))
        rows.append(
            f'    <tr>\n      <td><a href="{quote(file.name)}">{html.escape(file.name)}</a></td>\n'
            f'      <td class="s">{status.st_size / 2**20:.1f}M</td>\n      <td>{date}</td>\n'
            f"      <td>{digest}</td>\n    </tr>\n"
        )
    return (
        f"<!DOCTYPE html>\n<html>\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n<table>\n"
        f"    <tr>\n      <th>Filename</th>\n      <th>Size</th>\n      <th>Last Modified</th>\n"
        f"      <th>{algorithm.upper()}</th>\n    </tr>\n{''.join(rows)}</table>\n"
        '<address><a href="https://www.example.org/">elsewhere</a></address>\n</body>\n</html>\n'
    )


def fancyindex(title: str, files: Iterable[Path]) -> str:
    """Return a listing as Nginx's fancyindex makes it: three cells a row, links to sort by, no hash."""
    rows = []
    for file in files:
        status = file.stat()
        date = time.strftime("%Y-%b-%d %H:%M", time.gmtime(status.st_mtime))
        name = html.escape(file.name)
        rows.append(
            f'<tr><td class="link"><a href="{quote(file.name)}" title="{name}">{name}</a></td>'
            f'<td class="size">{status.st_size / 2**10:.1f} KiB</td><td class="date">{date}</td></tr>\n'
        )
    return (
        f"<!DOCTYPE html>\n<html><head><title>Index of {title}</title></head><body><h1>Index of {title}</h1>\n"
        '<table id="list"><thead><tr><th><a href="?C=N&amp;O=A">File Name</a></th>'
        '<th><a href="?C=S&amp;O=A">File Size</a></th><th><a href="?C=M&amp;O=A">Date</a></th></tr></thead>\n'
        '<tbody><tr><td class="link"><a href="../">Parent directory/</a></td><td class="size">-</td>'
        f'<td class="date">-</td></tr>\n{"".join(rows)}</tbody></table></body></html>\n'
    )


def autoindex(title: str, entries: Iterable[Path]) -> str:
    """Return a listing as Nginx's autoindex makes it: preformatted text with links, long names cut."""
    lines = []
    for entry in entries:
        name = entry.name + ("/" if entry.is_dir() else "")
        shown = name if len(name) <= 50 else name[:47] + "..>"
        date = time.strftime("%d-%b-%Y %H:%M", time.gmtime(entry.stat().st_mtime))
        size = "-" if entry.is_dir() else str(entry.stat().st_size)
        lines.append(f'<a href="{quote(name)}">{html.escape(shown)}</a>{" " * (51 - len(shown))}{date} {size:>19}\r\n')
    return (
        f"<html>\r\n<head><title>Index of {title}</title></head>\r\n<body>\r\n<h1>Index of {title}</h1><hr>"
        f'<pre><a href="../">../</a>\r\n{"".join(lines)}</pre><hr></body>\r\n</html>\r\n'
    )
