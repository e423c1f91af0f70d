"""The search of the portal: its script in Node, which asks a real Nginx for the list."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from roles.devpi.files.lanmirror_ops.packages import Package, listed
from tests.roles.render import render
from tests.roles.site import Site, site

TYPES = {"lab/dev": "stage", "root/pypi": "mirror"}
# What of a browser the script uses; what is typed in is what it is given, one after the other.
BROWSER = """
const [base, script, ...typed] = process.argv.slice(1);
class Element {
  children = [];
  listeners = {};
  hidden = false;
  value = "";
  textContent = "";
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  get tBodies() { return [this.body ??= new Element()]; }
  get text() { return this.textContent + this.children.map(one => one.text ?? one).join(""); }
}
const elements = {};
globalThis.document = {
  createElement: () => new Element(),
  getElementById: id => elements[id] ??= new Element(),
};
const ask = globalThis.fetch, asked = [];
globalThis.fetch = (path, options) => { asked.push(path); return ask(base + path, options); };
(0, eval)(script);
const input = elements["pypi-search"], found = elements["pypi-found"];
(async () => {
  const shown = [];
  for (const text of typed) {
    input.value = text;
    await input.listeners.input();
    shown.push({
      told: elements["pypi-told"].textContent,
      hidden: found.hidden,
      rows: found.tBodies[0].children.map(row => row.children.map(cell => cell.text)),
      links: found.tBodies[0].children.map(row => row.children[0].children[0].href),
    });
  }
  console.log(JSON.stringify([shown, asked]));
})();
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as running:
        (running.folder / "state").mkdir()
        yield running


def have(site: Site, text: str | None) -> None:
    """Have this list, or none, and wait until Nginx sees it: it keeps files open for a second."""
    file = site.folder / "state/packages.json"
    file.unlink(missing_ok=True)
    if text is not None:
        file.write_text(text)
    end = time.monotonic() + 60
    while True:
        answer = site.ask("/+packages.json", Accept_Encoding="")
        if answer.body.decode() == text if text is not None else answer.status == http.client.NOT_FOUND:
            return
        assert time.monotonic() < end, answer
        time.sleep(0.1)


def package(name: str, index: str = "root/pypi", used: float = 0.0) -> Package:
    return Package(name, index, {"1.0", "1.10"}, 2, 5 << 20, used)


@cache
def portal() -> str:
    return render("devpi", "devpi-portal.html.j2", nginx_site_scheme="http")


def search(site: Site, *typed: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Type this, one after the other; return what the page shows each time, and what it asked for."""
    (script,) = re.findall(r'<script id="pypi-script">\n(.*?)</script>', portal(), re.DOTALL)
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "TZ": "UTC"}
    command = ["node", "-e", BROWSER, f"http://127.0.0.1:{site.port}", script, *typed]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    shown, asked = json.loads(done.stdout)
    return shown, asked


def test_search_finds_names_as_indexes_compare_them(ours: Site) -> None:
    used = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, 0))
    packages = [package("zope-interface", used=used), package("interface"), package("interface-tools", "lab/dev")]
    have(ours, listed([*packages, package("an-interface"), package("six")], TYPES, time.time()))
    (first, exact, none, empty), asked = search(ours, " Interface", "Zope._Interface", "none-such", " ")
    assert asked == ["/+packages.json"]
    assert first["told"].startswith("4 of 5 packages, as of ")
    assert first["rows"] == [
        ["interface", "root/pypi", "1.10, 1.0", "5.0 MiB", "never"],
        ["interface-tools", "lab/dev (uploaded)", "1.10, 1.0", "5.0 MiB", "never"],
        ["an-interface", "root/pypi", "1.10, 1.0", "5.0 MiB", "never"],
        ["zope-interface", "root/pypi", "1.10, 1.0", "5.0 MiB", "2026-11-29"],
    ]
    assert first["links"] == [
        "/root/pypi/+simple/interface/",
        "/lab/dev/+simple/interface-tools/",
        "/root/pypi/+simple/an-interface/",
        "/root/pypi/+simple/zope-interface/",
    ]
    assert [row[0] for row in exact["rows"]] == ["zope-interface"]
    assert none["told"].startswith("0 of 5 packages")
    assert empty["told"] == ""
    assert [(shown["hidden"], shown["rows"]) for shown in (none, empty)] == [(True, [])] * 2


def test_of_many_names_a_page_is_shown_and_what_is_left_out_is_told(ours: Site) -> None:
    text = listed([package(f"tool-{number:04}") for number in range(400)], TYPES, time.time(), most=15_000)
    have(ours, text)
    left = json.loads(text)["left_out"]
    assert 0 < left < 300
    (found,), _ = search(ours, "tool")
    assert [row[0] for row in found["rows"]] == [f"tool-{number:04}" for number in range(50)]
    assert f"{400 - left} of {400 - left} packages" in found["told"]
    assert "The first 50 are shown." in found["told"]
    assert f"{left} more are here that the list has no room for." in found["told"]
    assert "old" not in found["told"]


@pytest.mark.parametrize(
    ("text", "words", "times"),
    [
        # What could not be had is asked for again.
        (None, "There is no list yet: the server makes it every ten minutes.", 2),
        ('{"made": 1}', "The list cannot be read.", 2),
        (listed([package("six")], TYPES, 1e9), "This list is old: the server should make it every ten minutes", 1),
    ],
    ids=["missing", "broken", "old"],
)
def test_list_that_is_missing_broken_or_old_is_told(ours: Site, text: str | None, words: str, times: int) -> None:
    have(ours, text)
    shown, asked = search(ours, "si", "six")
    assert [words in one["told"] for one in shown] == [True, True]
    assert len(asked) == times


def test_list_goes_out_packed_and_once(ours: Site) -> None:
    text = listed([package(f"tool-{number}") for number in range(200)], TYPES, 1e9)
    have(ours, text)
    answer = ours.ask("/+packages.json")
    assert (answer.status, answer["content-type"], answer["content-encoding"]) == (200, "application/json", "gzip")
    assert gzip.decompress(answer.body).decode() == text
    assert answer["cache-control"] == "no-cache"
    again = ours.ask("/+packages.json", If_None_Match=answer["etag"])
    assert again.status == http.client.NOT_MODIFIED
    assert ours.ask("/+packages.json", "POST").status == http.client.METHOD_NOT_ALLOWED
    # Nothing else of that folder is given out, and devpi is not asked.
    (ours.folder / "state/state.sqlite").write_text("secret")
    for path in ("/+packages.json/../state.sqlite", "/+packages.jsonstate.sqlite", "/state.sqlite"):
        assert b"secret" not in ours.ask(path).body
    assert "/+packages.json" not in ours.devpi.paths()


def test_portal_asks_no_other_host() -> None:
    assert re.findall(r"https?://(?!this-server)[^\s\"'<`]*", portal()) == []
    assert re.findall(r'(?:src|href)="(?![/#])[^"]*"', portal()) == []
