"""The text functions of role client: what goes in, what stays, what comes out again."""

from __future__ import annotations

import configparser
import contextlib
import datetime
import itertools
import os
import pwd
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.roles.render import evaluate, python_file, render, run_module, tasks

ROLE = Path(__file__).parents[2] / "roles" / "client"
URL = "http://192.0.2.10"


client = python_file(ROLE / "filter_plugins" / "client_settings.py")
trust = python_file(ROLE / "filter_plugins" / "client_trust.py")
PIP = client.pip_settings(URL)
CONDA = client.conda_settings(URL, ["main", "r"], ["conda-forge"])


def ours_out(text: str) -> list[str]:
    """Give the lines that a reader would call not ours, replaced ones in their own form."""
    out, skip = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("# lanmirror: begin"):
            skip = True
        elif line.lstrip().startswith("# lanmirror: end"):
            skip = False
        elif not skip:
            out.append(line.removeprefix(client.KEPT))
    return out


# ---- pip ---------------------------------------------------------------------------------------------------


def test_pip_settings_of_http_trust_the_host() -> None:
    assert PIP == {"index-url": "http://192.0.2.10/root/pypi/+simple/", "trusted-host": "192.0.2.10"}
    assert client.pip_settings("http://mirror:8080/")["trusted-host"] == "mirror:8080"


def test_pip_settings_of_https_trust_nobody() -> None:
    assert client.pip_settings("https://mirror.lab.lan/") == {"index-url": "https://mirror.lab.lan/root/pypi/+simple/"}


def test_pip_new_file() -> None:
    text = client.apply_pip(None, PIP)
    assert text == (
        f"{client.BEGIN} [new file]\n"
        "[global]\n"
        "index-url = http://192.0.2.10/root/pypi/+simple/\n"
        "trusted-host = 192.0.2.10\n"
        "# lanmirror: end\n"
    )
    assert client.remove(text) is None


PIP_FILES = {
    "empty": "",
    "comment without line end": "# mine",
    "other section": "[install]\nuser = true",
    "global with others": "# top\n[global]\ntimeout = 60\n\n[freeze]\ntimeout = 10\n",
    "replaced": "[global]\nindex-url = https://old.example/simple  \ntimeout=9\n",
    "replaced under other names": "[global]\nIndex_URL: https://old.example/simple\ntimeout=9\n",
    "replaced over several lines": "[global]\ntrusted-host =\n    a.example\n    # why\n    b.example\nproxy = x\n",
    "extra index": "[global]\nextra-index-url = https://u:p@x.example/simple\ntrusted-host = x.example\n",
    "indented": "  [global]\n    timeout = 5\n    index-url = https://old.example\n",
    "indented header at the top": "\n   [install]\nuser = true\n",
    "windows line ends": "[global]\r\nindex-url = https://old.example\r\ntimeout = 1\r\n",
    "defaults": "[DEFAULT]\ntimeout = 5\n",
    "empty section at the end": "[install]\nuser = true\n[global]",
    "no own line end": "[global]\nindex-url = https://old.example",
}


@pytest.mark.parametrize("text", PIP_FILES.values(), ids=PIP_FILES)
def test_pip_keeps_what_is_not_ours(text: str) -> None:
    result = client.apply_pip(text, PIP)
    parsed = client.parse_pip(result)
    assert parsed["global"]["index-url"] == PIP["index-url"]
    assert PIP["trusted-host"] in parsed["global"]["trusted-host"].split()
    assert ours_out(result) == text.splitlines()
    assert client.apply_pip(result, PIP) == result
    assert client.remove(result) == text


def test_pip_keeps_hosts_that_are_trusted_already() -> None:
    parsed = client.parse_pip(client.apply_pip(PIP_FILES["extra index"], PIP))
    assert parsed["global"]["trusted-host"] == "x.example 192.0.2.10"
    assert parsed["global"]["extra-index-url"] == "https://u:p@x.example/simple"


def test_pip_another_server_leaves_nothing_of_the_first() -> None:
    text = PIP_FILES["replaced"]
    other = client.pip_settings("https://mirror.lab.lan")
    result = client.apply_pip(client.apply_pip(text, PIP), other)
    assert result == client.apply_pip(text, other)
    assert "192.0.2.10" not in result


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("timeout = 5\n", 1),
        ("[global]\ntimeout\n", 2),
        ("[global]\na=1\n[global]\nb=2\n", 3),
        ("[global]\ntimeout=1\n\ntimeout=2\n", 4),
        ("\ufeff[global]\n", 1),
        ("[global]\n# a\x85b\n", 2),
        ("[global]\n# lanmirror: end\n", 2),
        ("[global]\n# lanmirror: begin\nindex-url=x\n", 2),
    ],
)
def test_pip_refuses_a_broken_file_and_names_the_line(text: str, line: int) -> None:
    with pytest.raises(client.SettingsError) as caught:
        client.apply_pip(text, PIP)
    assert caught.value.line == line


WORD = st.text("abcdefgh.:/-_", min_size=1, max_size=8).filter(lambda word: word[0].isalpha())
NOTE = st.sampled_from(["", "\n", "# a note\n", "; another\n", "   # deep\n"])
NAME = st.sampled_from(
    ["index-url", "index_url", "trusted-host", "timeout", "proxy", "extra-index-url", "no-cache-dir"]
)


@st.composite
def pip_files(draw: st.DrawFn) -> str:
    parts = [draw(NOTE)]
    for section in draw(st.lists(st.sampled_from(["global", "install", "list"]), unique=True)):
        parts.append(f"[{section}]\n{draw(NOTE)}")
        indent = draw(st.sampled_from(["", "  "]))
        for name in draw(st.lists(NAME, unique=True)):
            value = draw(WORD) + draw(st.sampled_from(["", "\n     more", "\n     more\n\n     yet more"]))
            parts.append(f"{indent}{name}{draw(st.sampled_from([' = ', '=', ': ']))}{value}\n{draw(NOTE)}")
    text = "".join(parts)
    return text if draw(st.booleans()) else text.rstrip("\n")


def effective(text: str, command: str) -> dict[str, str]:
    """Give the options of a command as pip puts them together: its own section beats [global]."""
    sections = client.parse_pip(text)
    return {**sections.get("global", {}), **{name: value for name, value in sections.get(command, {}).items() if value}}


@given(pip_files())
def test_pip_any_file(text: str) -> None:
    try:
        before = client.parse_pip(text)
    except client.SettingsError:
        return
    result = client.apply_pip(text, PIP)
    parser = configparser.RawConfigParser()
    parser.read_string(result)
    assert parser["global"]["index-url"] == PIP["index-url"]
    after = client.parse_pip(result)
    for section, options in before.items():
        for name, value in options.items():
            if name not in PIP:
                assert after[section][name] == value
    for command in ("install", "list", "download"):
        assert effective(result, command)["index-url"] == PIP["index-url"]
        assert PIP["trusted-host"] in effective(result, command)["trusted-host"].split()
    assert client.apply_pip(result, PIP) == result
    assert client.remove(result) == text


@given(st.text())
def test_any_text_is_edited_or_refused(text: str) -> None:
    for apply, ours in ((client.apply_pip, PIP), (client.apply_conda, CONDA)):
        try:
            result = apply(text, ours)
        except client.SettingsError:
            continue
        assert client.remove(result) == client.remove(text)
        assert apply(result, ours) == result
        if "# lanmirror: " not in text:
            assert client.remove(text) == text


@pytest.mark.parametrize("line", ["timeout = 5\n", "", "x: 1"])
def test_line_that_was_replaced_comes_back_even_where_somebody_took_our_block_out(line: str) -> None:
    left = client.KEPT + line
    assert client.remove(left) == line
    apply, ours = (client.apply_conda, CONDA) if ":" in line else (client.apply_pip, PIP)
    assert client.remove(apply(f"[global]\n{left}" if apply is client.apply_pip else left, ours)).endswith(line)


# ---- conda -------------------------------------------------------------------------------------------------


def wanted(before: dict[str, Any]) -> dict[str, Any]:
    """Give what goes into a file: channels only where it has none."""
    return {name: value for name, value in CONDA.items() if name != "channels" or not before.get("channels")}


def test_conda_settings() -> None:
    assert CONDA == {
        "show_channel_urls": True,
        "channels": ["defaults"],
        "default_channels": ["http://192.0.2.10/anaconda/pkgs/main", "http://192.0.2.10/anaconda/pkgs/r"],
        "custom_channels": {"conda-forge": "http://192.0.2.10/anaconda/cloud"},
    }
    assert client.conda_settings(URL, [], []) == {"show_channel_urls": True}


def test_conda_new_file() -> None:
    text = client.apply_conda(None, CONDA)
    assert text == (
        f"{client.BEGIN} [new file]\n"
        "show_channel_urls: true\n"
        "channels:\n"
        "  - defaults\n"
        "default_channels:\n"
        "  - http://192.0.2.10/anaconda/pkgs/main\n"
        "  - http://192.0.2.10/anaconda/pkgs/r\n"
        "custom_channels:\n"
        "  conda-forge: http://192.0.2.10/anaconda/cloud\n"
        "# lanmirror: end\n"
    )
    assert client.remove(text) is None


CONDA_FILES = {
    "empty": "",
    "only a comment": "# mine",
    "only a document mark": "---",
    "others": "# my channels\nchannels:\n  - conda-forge   # first\n  - defaults\nssl_verify: true",
    "document mark": "%YAML 1.1\n---\n# a\nchannels: [defaults]\n...\n",
    "replaced": "show_channel_urls: false # quiet\ndefault_channels:\n- https://a.example/main\n\n# end\nauto: 1\n",
    "replaced in brackets": "default_channels: [https://a.example/main,\n   https://b.example/r]\nauto: 1\n",
    "merged": "custom_channels:\n  # of the lab\n  lab: https://lab.lan\n  conda-forge: https://old.example\nx: 1\n",
    "merged in braces": "custom_channels: {lab: https://lab.example, conda-forge: https://old.example}\n",
    "merged at the end": "x: 1\ncustom_channels:\n    lab: https://lab.example",
    "empty mapping": "custom_channels:\nx: 1\n",
    "indented": "  x: 1\n  custom_channels:\n     lab: https://lab.example\n",
    "block scalar": "note: |\n  default_channels:\n   - no key\n\nshow_channel_urls: >-\n  yes\n\nx: 1\n",
    "windows line ends": "show_channel_urls: false\r\nx: 1\r\n",
    "quoted keys": "\"default_channels\": ['https://a.example']\n'x': 1\n",
    "list at the key's own depth": "default_channels:\n# a\n- https://a.example\n# b\n- https://b.example\n# c\nx: 1\n",
    "number as a channel": "custom_channels:\n  2024: https://lab.example\n",
}


@pytest.mark.parametrize("text", CONDA_FILES.values(), ids=CONDA_FILES)
def test_conda_keeps_what_is_not_ours(text: str) -> None:
    result = client.apply_conda(text, CONDA)
    before, after = yaml.safe_load(text) or {}, yaml.safe_load(result)
    merged = {**(before.get("custom_channels") or {}), **CONDA["custom_channels"]}
    assert after == {**before, **wanted(before), "custom_channels": merged}
    assert ours_out(result) == text.splitlines()
    assert client.apply_conda(result, CONDA) == result
    assert client.remove(result) == text


def test_conda_mapping_of_the_user_keeps_its_lines() -> None:
    result = client.apply_conda(CONDA_FILES["merged"], CONDA)
    assert (
        "custom_channels:\n"
        f"  {client.BEGIN}\n"
        "  conda-forge: http://192.0.2.10/anaconda/cloud\n"
        "  # lanmirror: end\n"
        "  # of the lab\n"
        "  lab: https://lab.lan\n"
        "# lanmirror: kept:   conda-forge: https://old.example\n"
        "x: 1\n"
    ) in result


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [\n", 3),
        ("a: 1\n b: 2\n", 2),
        ("- a\n", 1),
        ("text\n", 1),
        ("a: 1\nb: 2\na: 3\n", 3),
        ("a: !thing 1\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\n\tb: 2\n", 2),
    ],
)
def test_conda_refuses_what_it_cannot_edit_and_names_the_line(text: str, line: int | None) -> None:
    with pytest.raises(client.SettingsError) as caught:
        client.apply_conda(text, CONDA)
    assert caught.value.line == line


SCALAR = st.one_of(st.booleans(), st.integers(0, 99), WORD, st.none())
VALUE = st.one_of(SCALAR, st.lists(WORD, max_size=3), st.dictionaries(WORD, WORD, max_size=3))
KEY = st.sampled_from(
    ["channels", "ssl_verify", "envs_dirs", "custom_channels", "default_channels", "show_channel_urls", "auto"]
)


@st.composite
def conda_files(draw: st.DrawFn) -> str:
    parts = [draw(st.sampled_from(["", "---\n", "# top\n", "\n# a\n\n"]))]
    for key in draw(st.lists(KEY, unique=True)):
        value = draw(VALUE)
        if key == "custom_channels":
            value = draw(st.dictionaries(st.one_of(WORD, st.just("conda-forge")), WORD, max_size=3))
        parts.append(draw(st.sampled_from(["", "# a note\n", "\n"])))
        if draw(st.booleans()) and isinstance(value, list | dict):
            parts.append(f"{key}: {yaml.safe_dump(value, default_flow_style=True)}")
        else:
            parts.append(yaml.safe_dump({key: value}, default_flow_style=False, indent=4))
    text = "".join(parts)
    if "# a note" in text and draw(st.booleans()):
        text = text.replace("\n", "  # beside\n", 1) if not text.startswith(("\n", "#")) else text
    return text if draw(st.booleans()) else text.rstrip("\n")


@given(conda_files())
def test_conda_any_file(text: str) -> None:
    before = yaml.safe_load(text) or {}
    result = client.apply_conda(text, CONDA)
    merged = {**(before.get("custom_channels") or {}), **CONDA["custom_channels"]}
    assert yaml.safe_load(result) == {**before, **wanted(before), "custom_channels": merged}
    assert client.apply_conda(result, CONDA) == result
    assert client.remove(result) == text
    other = client.conda_settings("https://other.lan", ["main"], [])
    assert client.apply_conda(result, other) == client.apply_conda(text, other)


# ---- the plan ----------------------------------------------------------------------------------------------

PATHS = {
    "pip": {"machine": "/etc/pip.conf", "user": "~/.config/pip/pip.conf"},
    "conda": {"machine": "/etc/conda/.condarc", "user": "~/.condarc"},
}
SERVER = dict.fromkeys(PATHS, URL)
NOWHERE = dict.fromkeys(PATHS, "")
MACHINE = client.client_targets(["pip", "conda"], [], [""], PATHS)
ALICE = client.client_targets(["pip", "conda"], ["alice"], [], PATHS)


def test_targets_of_the_machine_and_of_users() -> None:
    assert [(t["key"], t["user"]) for t in MACHINE] == [("/etc/pip.conf", ""), ("/etc/conda/.condarc", "")]
    users = client.client_targets(["conda"], ["alice", "bob"], ["", "carol", "bob"], PATHS)
    assert [(t["key"], t["path"], t["wanted"]) for t in users] == [
        ("~alice/.config/pip/pip.conf", "~/.config/pip/pip.conf", False),
        ("~alice/.condarc", "~/.condarc", True),
        ("~bob/.config/pip/pip.conf", "~/.config/pip/pip.conf", False),
        ("~bob/.condarc", "~/.condarc", True),
        ("/etc/pip.conf", "/etc/pip.conf", False),
        ("/etc/conda/.condarc", "/etc/conda/.condarc", False),
        ("~carol/.config/pip/pip.conf", "~/.config/pip/pip.conf", False),
        ("~carol/.condarc", "~/.condarc", False),
    ]


def other(tool: str, user: str, path: str, rank: int, content: str) -> dict[str, Any]:
    return {"tool": tool, "user": user, "path": path, "rank": rank, "content": content}


def found(
    *texts: str | None, targets: Sequence[dict[str, Any]] = MACHINE, others: Sequence[object] = (), **more: object
) -> dict[str, Any]:
    """Give what the module client_files would find."""
    usual = {"folders": 0, "problem": "", "unwritable": "", "gone": False}
    read = [{**usual, "path": t["path"], "content": x, **more} for t, x in zip(targets, texts, strict=True)]
    return {"files": read, "others": list(others), "variables": [], "pips_of_users": []}


def plan(
    seen: dict[str, Any],
    urls: dict[str, str] = SERVER,
    repos: Sequence[str] = ("main",),
    targets: Sequence[dict[str, Any]] = MACHINE,
) -> list[dict[str, Any]]:
    done: list[dict[str, Any]] = client.client_plan(seen, targets, urls, repos, [])
    return done


def test_plan_there_and_back() -> None:
    there = plan(found(None, "x: 1\n"))
    assert [entry["problem"] for entry in there] == [None, None]
    back = plan(found(*(entry["content"] for entry in there)), NOWHERE)
    assert [(entry["content"], entry["changed"]) for entry in back] == [(None, True), ("x: 1\n", True)]
    again = plan(found(*(entry["content"] for entry in there)))
    assert [entry["changed"] for entry in again] == [False, False]


def test_plan_absent_where_nothing_is() -> None:
    done = plan(found(None, ""), NOWHERE)
    assert [(entry["content"], entry["changed"]) for entry in done] == [(None, False), ("", False)]


def test_plan_takes_out_the_half_that_is_not_there() -> None:
    texts = [entry["content"] for entry in plan(found("[global]\n", "x: 1\n"))]
    pip, conda = plan(found(*texts), {"pip": "https://pypi.lab.lan", "conda": ""})
    assert "https://pypi.lab.lan/root" in pip["content"]
    assert conda["content"] == "x: 1\n"


def test_plan_leaves_conda_alone_while_the_server_has_no_channel() -> None:
    assert [entry["content"] is None for entry in plan(found(None, None), repos=())] == [False, True]


def test_plan_names_file_and_line_and_does_the_others() -> None:
    pip, conda = plan(found("[global]\nx\n", "a: [\n"))
    assert pip["problem"] == "/etc/pip.conf: line 2: pip cannot read this line"
    assert str(conda["problem"]).startswith("/etc/conda/.condarc: line 2: it is not YAML")
    pip, conda = plan(found("[global]\nx\n", "a: 1\n"))
    assert (pip["changed"], conda["changed"]) == (False, True)


def test_plan_passes_on_why_a_file_cannot_be_read_or_written() -> None:
    assert plan(found(None, None, problem="denied"))[0]["problem"] == "/etc/pip.conf: denied"
    full = found(None, None, unwritable="No space left on device")
    assert plan(full)[0]["problem"] == "/etc/pip.conf: it cannot be written (No space left on device)"
    assert plan(full, NOWHERE)[0]["problem"] is None
    right = [entry["content"] for entry in plan(found(None, None))]
    assert [entry["problem"] for entry in plan(found(*right, unwritable="Read-only file system"))] == [None, None]


def test_plan_forgets_a_user_who_is_gone() -> None:
    seen = found(None, None, targets=ALICE, problem="there is no user alice", gone=True)
    assert [entry["problem"] for entry in plan(seen, NOWHERE, targets=ALICE)] == [None, None]
    assert [entry["problem"] is None for entry in plan(seen, targets=ALICE)] == [False, False]


def test_folders_that_were_made_go_again() -> None:
    there = plan(found(None, None, folders=2))
    texts = [entry["content"] for entry in there]
    assert all("[new folders: 2]" in text for text in texts)
    again = plan(found(*texts), {"pip": "https://other.lan", "conda": "https://other.lan"})
    back = plan(found(*(entry["content"] for entry in again)), NOWHERE)
    assert [(entry["content"], entry["folders"]) for entry in back] == [(None, 2), (None, 2)]
    theirs = plan(found(*(text + "# mine\n" for text in texts)), NOWHERE)
    assert [entry["content"] for entry in theirs] == ["# mine\n", "# mine\n"]


# ---- which file wins ---------------------------------------------------------------------------------------

PIP_SECTIONS = {
    "trusted-host alone": "[install]\ntrusted-host = files.example\n",
    "index-url": "[install]\nindex-url = https://files.example/simple\nuser = true\n",
    "its other name": "[install]\npypi-url = https://files.example/simple\n",
    "each command": "".join(
        f"[{name}]\nindex-url=https://x.example\n\n" for name in ("download", "wheel", "lock", "index")
    ),
    "with global": "[install]\ntrusted_host = a b\n# why\n[global]\nindex-url = https://x.example\ntrusted-host = c",
    "by the defaults": "[DEFAULT]\nindex-url = https://x.example\n[install]\nuser = true\n",
    "last of all": "[install]\n  index-url = https://x.example",
}


@pytest.mark.parametrize("text", PIP_SECTIONS.values(), ids=PIP_SECTIONS)
def test_pip_ours_wins_in_each_section(text: str) -> None:
    result = client.apply_pip(text, PIP)
    for command in ("install", "download", "wheel", "lock", "index", "list"):
        options = effective(result, command)
        assert options["index-url"] == PIP["index-url"], command
        assert PIP["trusted-host"] in options["trusted-host"].split(), command
    for section, options in client.parse_pip(text).items():
        hosts = client.parse_pip(result)[section].get("trusted-host", "").split()
        assert set(options.get("trusted-host", "").split()) <= set(hosts)
    assert ours_out(result) == text.splitlines()
    assert client.apply_pip(result, PIP) == result
    assert client.remove(result) == text


def test_pip_section_has_only_what_would_be_overridden() -> None:
    result = client.apply_pip(PIP_SECTIONS["trusted-host alone"], PIP)
    assert client.parse_pip(result)["install"] == {"trusted-host": "files.example 192.0.2.10"}


def test_pip_section_of_the_machine_does_not_beat_the_file_of_a_user() -> None:
    machine = other("pip", "", "/etc/pip.conf", 1, "[install]\ntrusted-host = a.example\n")
    seen = found(None, None, targets=ALICE, others=[machine])
    text = plan(seen, targets=ALICE)[0]["content"]
    assert client.parse_pip(text)["install"] == {"trusted-host": "192.0.2.10"}
    assert client.remove(text) is None
    not_hers = other("pip", "bob", "/home/bob/.pip/pip.conf", 2, machine["content"])
    seen = found(None, None, targets=ALICE, others=[not_hers])
    assert "install" not in client.parse_pip(plan(seen, targets=ALICE)[0]["content"])


def notes(others: Sequence[object], targets: Sequence[dict[str, Any]] = MACHINE, **more: object) -> list[str]:
    seen = {**found(None, None, targets=targets, others=others), **more}
    named: list[str] = client.client_notes(seen, targets, SERVER, ["main"], ["conda-forge"])
    return named


def test_what_counts_more_and_is_not_ours_is_named() -> None:
    user = "[install]\ntrusted-host = a.example\n[global]\nindex-url = https://u:secret@x.example\ntimeout = 1\n"
    pip = other("pip", "alice", "/home/alice/.config/pip/pip.conf", 3, user)
    conda = other(
        "conda", "alice", "/home/alice/.condarc", 50, "channels: [bioconda]\ncustom_channels: {conda-forge: x}\n"
    )
    multi = other("conda", "", "/etc/conda/condarc.d/a.yml", 2, "custom_multichannels: {defaults: [x]}\nauto: 1\n")
    lines = [{"tool": "pip", "path": "/etc/environment", "line": 3, "name": "PIP_INDEX_URL"}]
    assert notes([pip, conda, multi], variables=lines) == [
        "/home/alice/.config/pip/pip.conf: [install] trusted-host, [global] index-url",
        "/home/alice/.condarc: channels, custom_channels: conda-forge",
        "/etc/conda/condarc.d/a.yml: custom_multichannels: defaults",
        "/etc/environment, line 3: PIP_INDEX_URL",
    ]
    assert notes([pip, conda], client.client_targets(["pip", "conda"], ["bob"], [], PATHS)) == []


def test_what_agrees_with_us_or_counts_less_is_not_named() -> None:
    agrees = other("pip", "alice", "/home/alice/.pip/pip.conf", 2, client.apply_pip(None, PIP))
    same = other("pip", "bob", "/home/bob/.pip/pip.conf", 2, f"[global]\nindex-url = {PIP['index-url']}\n")
    hosts = f"[global]\ntrusted-host =\n    a.example\n    {PIP['trusted-host']}\n"
    more = other("pip", "carol", "/home/carol/.pip/pip.conf", 2, hosts)
    less = other("pip", "", "/etc/xdg/pip/pip.conf", 0, "[global]\nindex-url = https://x.example\n")
    broken = other("conda", "bob", "/home/bob/.condarc", 50, "a: [\n")
    assert notes([agrees, same, more, less, broken]) == []
    for option in ("extra-index-url = https://x.example", "no-index = true"):
        beside = other("pip", "", "/etc/pip.conf", 1, f"[global]\n{option}\n")
        assert notes([beside]) == [f"/etc/pip.conf: [global] {option.partition(' ')[0]}"]


def test_other_names_of_settings_are_known() -> None:
    hers = other("pip", "alice", "/home/alice/.pip/pip.conf", 2, "[install]\npypi-url = https://x.example\n")
    assert notes([hers]) == ["/home/alice/.pip/pip.conf: [install] index-url"]
    there = "[install]\npypi-url = https://x.example\n"
    assert client.parse_pip(client.apply_pip(there, PIP))["install"]["index-url"] == PIP["index-url"]
    defaults = other("conda", "", "/etc/conda/condarc.d/a.yml", 2, "default_channels: [https://x.example]\n")
    assert notes([defaults]) == ["/etc/conda/condarc.d/a.yml: default_channels"]


def test_authorities_of_a_file_that_counts_more_are_named() -> None:
    hers = other("conda", "alice", "/home/alice/.condarc", 50, "ssl_verify: false\n")
    less = other("conda", "", "/etc/conda/.condarc", 0, "ssl_verify: false\n")
    for ca_bundle, named in ((BUNDLE, ["/home/alice/.condarc: ssl_verify"]), ("", [])):
        seen = found(None, None, others=[hers, less])
        assert client.client_notes(seen, MACHINE, SERVER, ["main"], [], ca_bundle=ca_bundle) == named


@pytest.mark.parametrize(
    ("root", "users", "may"),
    [(True, [], True), (True, ["bob"], True), (False, ["alice"], True), (False, [], False), (False, ["bob"], False)],
)
def test_settings_for_oneself_need_no_root(root: bool, users: list[str], may: bool) -> None:
    (check,) = tasks("client", "rights.yml")
    known = {"__client_host": {"root": root, "me": "alice", "users": ["carol"]}, "client_users": users}
    assert bool(evaluate("client", f"{{{{ {check['ansible.builtin.assert']['that']} }}}}", **known)) is may
    # And nobody else's files are looked at.
    assert evaluate("client", "{{ __client_known }}", **known) == (["", "carol"] if root else ["alice"])


def test_pip_in_a_home_that_cannot_reach_the_server_is_named() -> None:
    seen = {**found(None, None), "pips_of_users": [{"path": "/home/alice/v", "version": v} for v in ("25.1", "24.0")]}
    for url, named in (("https://10.0.0.9", 1), ("https://mirror.lab.lan", 0)):
        said = client.client_notes(seen, MACHINE, dict.fromkeys(PATHS, url), ["main"], [])
        assert len(said) == named
        assert all("/home/alice/v: pip 25.1 cannot reach https://10.0.0.9" in text for text in said)


# ---- conda's channels --------------------------------------------------------------------------------------


def test_conda_channels_are_written_where_nobody_has_some() -> None:
    assert client.conda_settings(URL, ["main"], ["conda-forge"])["channels"] == ["defaults"]
    assert client.conda_settings(URL, [], ["conda-forge", "conda-forge/label/rc"])["channels"] == ["conda-forge"]
    for text in ("channels: [bioconda]\n", "channel: [bioconda]\n", "{channels: [bioconda]}\n"):
        after = yaml.safe_load(client.apply_conda(text, CONDA))
        assert {**after, **yaml.safe_load(text)} == after
        assert "defaults" not in (after.get("channels") or [])
    for text in ("channels: []\n", "channels:\n", ""):
        result = client.apply_conda(text, CONDA)
        assert yaml.safe_load(result)["channels"] == ["defaults"]
        assert client.remove(result) == text


@pytest.mark.parametrize(
    ("user", "path", "rank", "targets"),
    [
        ("", "/etc/conda/condarc", 1, MACHINE),
        ("", "/etc/conda/condarc.d/site.yml", 2, MACHINE),
        ("", "/var/lib/conda/.condarc", 10, MACHINE),
        ("", "/opt/miniforge3/.condarc", 20, MACHINE),
        ("", "/etc/conda/.condarc", 0, ALICE),
        ("alice", "/home/alice/miniforge3/.condarc", 20, ALICE),
        ("alice", "/home/alice/.config/conda/condarc", 31, ALICE),
        ("alice", "/home/alice/.conda/.condarc", 40, ALICE),
    ],
)
def test_conda_channels_of_another_file_that_counts_are_enough(
    user: str, path: str, rank: int, targets: list[dict[str, Any]]
) -> None:
    for text, written in (("channels: [conda-forge]\n", False), ("auto: 1\n", True)):
        seen = found(None, None, targets=targets, others=[other("conda", user, path, rank, text)])
        content = plan(seen, targets=targets)[1]["content"]
        assert ("channels" in yaml.safe_load(content)) is written


def test_conda_channels_of_one_user_are_not_enough_for_the_machine() -> None:
    theirs = other("conda", "alice", "/home/alice/.condarc", 50, "channels: [conda-forge]\n")
    assert yaml.safe_load(plan(found(None, None, others=[theirs]))[1]["content"])["channels"] == ["defaults"]


def test_conda_labels_and_nested_channels() -> None:
    settings = client.conda_settings(URL, [], ["conda-forge/label/broken", "nvidia/label/cuda-12.4.0"])
    text = client.apply_conda("custom_channels:\n  nvidia/label/cuda-12.4.0: https://x.example\n", settings)
    assert yaml.safe_load(text)["custom_channels"] == {
        "conda-forge/label/broken": f"{URL}/anaconda/cloud",
        "nvidia/label/cuda-12.4.0": f"{URL}/anaconda/cloud",
    }


def test_conda_multichannel_of_the_same_name_gives_way() -> None:
    text = "custom_multichannels:\n  lab: [a]\n  defaults: [https://x.example]\n"
    result = client.apply_conda(text, CONDA)
    assert yaml.safe_load(result)["custom_multichannels"] == {"lab": ["a"], "defaults": CONDA["default_channels"]}
    assert client.remove(result) == text


ODD_CONDA_FILES = {
    "empty braces": "{}\n",
    "braces": "{channels: [conda-forge]}",
    "braces over lines": "# mine\n{\n  # why\n  auto: 1,\n  default_channels: [a]}\n# end\n",
    "braces after a mark": "--- {a: 1}\n",
    "alias as a value": "default_channels: &x [a]\nother: *x\n",
    "alias of a mapping": "custom_channels: &x {conda-forge: a}\nother: *x\n",
    "merged mapping": "base: &x {conda-forge: a, lab: b}\ncustom_channels:\n  <<: *x\n  more: c\n",
    "byte order mark": "\ufeffauto: 1\ndefault_channels: [a]\n",
    "mark alone": "\ufeff",
    "mark and braces": "\ufeff{a: 1}",
    "document mark": "---\n",
    "empty document": "---\n...\n",
    "directive": "%YAML 1.1\n---\n",
    "directive and braces": "%YAML 1.1\n--- {a: 1}\n...\n",
    "null": "~\n",
    "null after a mark": "--- null # nothing\n",
    "comments": "# a\n# b",
    "text over lines": "{note: 'a\n\n  # b', auto: 1}\n",
}


@pytest.mark.parametrize("text", ODD_CONDA_FILES.values(), ids=ODD_CONDA_FILES)
def test_conda_odd_files_are_edited(text: str) -> None:
    before = yaml.safe_load(text) or {}
    result = client.apply_conda(text, CONDA)
    assert result.startswith("\ufeff") == text.startswith("\ufeff")
    after = yaml.safe_load(result)
    merged = {**(before.get("custom_channels") or {}), **CONDA["custom_channels"]}
    assert after == {**before, **wanted(before), "custom_channels": merged}
    assert client.apply_conda(result, CONDA) == result
    assert client.remove(result) == text


def test_conda_file_that_would_keep_the_controller_busy_is_refused() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefgh")
    )
    with pytest.raises(client.SettingsError, match="aliases"):
        client.apply_conda(bomb, CONDA)


# ---- the server --------------------------------------------------------------------------------------------


def test_addresses_of_servers_go_to_the_hosts_file() -> None:
    ours = client.client_hosts({"pypi.lab.lan": "192.0.2.10", "conda.lab.lan": "192.0.2.11"})
    assert ours == ["192.0.2.10 pypi.lab.lan # lanmirror", "192.0.2.11 conda.lab.lan # lanmirror"]
    pattern = client.client_other_hosts(ours)
    lines = [
        *ours,
        "192.0.2.9 pypi.lab.lan # lanmirror",
        "192.0.2.12 pypi.lab.lan",
        "192.0.2.10 pypi.lab.lan.x # lanmirror",
    ]
    assert [line for line in lines if re.search(pattern, line)] == [lines[2], lines[4]]
    assert re.search(client.client_other_hosts([]), ours[0])


def test_questions_to_the_servers() -> None:
    urls = {"pip": "http://pypi.lab.lan/", "conda": "https://conda.lab.lan"}
    asked = client.client_questions(urls, ["main"], ["conda-forge/label/rc"], ["pip", "conda"])
    assert [question["url"] for question in asked] == [
        "http://pypi.lab.lan/",
        "https://conda.lab.lan/anaconda/pkgs/main/noarch/repodata.json",
        "https://conda.lab.lan/anaconda/cloud/conda-forge/label/rc/noarch/repodata.json",
    ]
    assert client.client_questions(NOWHERE, ["main"], [], ["pip", "conda"]) == []
    assert client.client_questions(urls, ["main"], [], []) == []


def test_answers_of_the_servers() -> None:
    asked = client.client_questions(SERVER, ["main", "r", "free"], ["conda-forge"], ["pip", "conda"])
    answers = [
        {"__client_question": q, "status": s, "msg": "why"}
        for q, s in zip(asked, (503, 200, 404, 502, 500), strict=True)
    ]
    assert client.client_missing(answers) == ["pkgs/r", "pkgs/free"]
    assert client.client_silent(answers) == [f"{asked[4]['url']} answers 500"]
    down = [{"__client_question": asked[0], "status": -1, "msg": "Status code was -1: Request failed: refused"}]
    assert client.client_silent(down) == [f"{URL}/: refused"]


@pytest.mark.parametrize(
    ("url", "broken"),
    [
        ("https://192.0.2.10", True),
        ("https://[2001:db8::1]:8443/", True),
        ("https://mirror.lab.lan", False),
        ("http://192.0.2.10", False),
        ("", False),
    ],
)
def test_pip_that_cannot_reach_an_address_by_https(url: str, broken: bool) -> None:
    for version, fails in (("24.1.2", False), ("24.2", True), ("25.1.1", True), ("26.0.1", True), ("26.1", False)):
        pip = {"path": "/usr/lib/x", "version": version}
        assert client.client_broken_pips(url, [pip]) == ([f"pip {version} (/usr/lib/x)"] if broken and fails else [])


# ---- the module --------------------------------------------------------------------------------------------

module = python_file(ROLE / "library" / "client_files.py")


def test_module_writes_through_a_link_and_keeps_the_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles" / "pip.conf", tmp_path / "pip.conf"
    module.write(real, "one\n")
    assert real.stat().st_mode & 0o777 == 0o644
    real.chmod(0o600)
    link.symlink_to(real)
    module.write(link.resolve(), "two\n")
    assert link.is_symlink()
    assert (module.read(link), real.stat().st_mode & 0o777) == ("two\n", 0o600)
    assert sorted(path.name for path in real.parent.iterdir()) == ["pip.conf"]
    assert module.read(tmp_path / "none") is None


def test_module_removes_the_folders_that_it_made_and_no_other(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "pip.conf"
    assert module.missing_folders(deep) == [tmp_path / "a" / "b", tmp_path / "a"]
    module.write(deep, "x")
    module.delete(deep, 2)
    assert list(tmp_path.iterdir()) == []
    module.write(deep, "x")
    (tmp_path / "a" / "theirs").touch()
    module.delete(deep, 2)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["theirs"]


def test_module_finds_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert module.unwritable(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    assert module.unwritable(Path("/proc")) != ""
    assert module.unwritable(Path("/sys")) != ""


def test_module_remembers_users(tmp_path: Path) -> None:
    memory = str(tmp_path / "lanmirror" / "client.json")
    assert module.remembered(memory) == []
    module.remember(memory, ["bob", "alice"])
    assert module.remembered(memory) == ["alice", "bob"]
    module.remember(memory, [])
    assert list(tmp_path.iterdir()) == []
    Path(memory).parent.mkdir()
    Path(memory).write_text("[broken")
    assert module.remembered(memory) == []


def test_module_reads_what_counts_for_a_user(tmp_path: Path) -> None:
    files = {
        ".condarc": "a: 1\n",
        ".conda/condarc.d/x.yml": "b: 1\n",
        ".conda/condarc.d/x.txt": "no\n",
        "miniforge3/condabin/conda": "",
        "miniforge3/.condarc": "c: 1\n",
        "venv/pyvenv.cfg": "",
        "venv/pip.conf": "[global]\n",
        "other/pip.conf": "[global]\n",
        ".bashrc": "# PIP_INDEX_URL=x\nexport PIP_INDEX_URL=https://u:secret@x PIP_CERT=y\n"
        "PIP_TRUSTED_HOST=mirror.lab\n",
        ".config/fish/config.fish": "set -gx CONDARC /x\necho $PIP_CERT\n",
        ".local/lib/python3.13/site-packages/pip-25.1.1.dist-info/METADATA": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    others = [(o["tool"], o["rank"], o["path"].removeprefix(f"{tmp_path}/")) for o in module.others_of("me", tmp_path)]
    assert others == [
        ("conda", 42, ".conda/condarc.d/x.yml"),
        ("conda", 50, ".condarc"),
        ("conda", 20, "miniforge3/.condarc"),
        ("pip", 60, "venv/pip.conf"),
    ]
    lines = [(v["line"], v["name"]) for v in module.variables_of(tmp_path, ["mirror.lab"])]
    assert lines == [(2, "PIP_INDEX_URL"), (2, "PIP_CERT"), (1, "CONDARC")]
    assert "secret" not in str(list(module.variables_of(tmp_path, [])))
    assert [pip["version"] for pip in module.pips(module.PIPS_OF_USERS, tmp_path)] == ["25.1.1"]


PIPS = {
    "usr/lib/python3/dist-packages/pip-23.0.1.dist-info/METADATA": "23.0.1",
    "usr/lib/python3.11/site-packages/pip-24.dist-info/METADATA": "24",
    "usr/local/lib/python3.11/dist-packages/pip-25.1.dist-info/METADATA": "25.1",
    "usr/local/lib/python3.12/site-packages/pip-25.2.dist-info/METADATA": "25.2",
    "usr/share/python-wheels/pip-23.0.2-py3-none-any.whl": "23.0.2",
    "usr/lib/python3.11/ensurepip/_bundled/pip-24.0-py3-none-any.whl": "24.0",
    "opt/miniforge3/lib/python3.12/site-packages/pip-25.3.dist-info/METADATA": "25.3",
}


def test_module_finds_every_pip_of_the_machine(tmp_path: Path) -> None:
    for path in PIPS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    # The machine's own patterns, below a folder of the test's.
    found = module.pips([f"~{pattern}" for pattern in module.PIPS], tmp_path)
    assert sorted(pip["version"] for pip in found) == sorted(PIPS.values())


def test_module_shows_no_password_in_a_diff() -> None:
    assert module.hidden("index-url = https://u:secret@x/simple\n") == "index-url = https://***@x/simple\n"


def client_files(tmp_path: Path, **arguments: Any) -> dict[str, Any]:
    return run_module(ROLE / "library" / "client_files.py", tmp_path, **arguments)


def test_module_writes_the_others_where_one_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    texts = {"one": "1\n", "file/two": "2\n", "three": "3\n"}
    files = [{"key": key, "path": str(tmp_path / key), "user": "", "content": text} for key, text in texts.items()]
    before = client_files(tmp_path, state="read", files=files)
    assert [file["content"] for file in before["files"]] == [None] * 3
    done = client_files(tmp_path, state="write", files=files)
    assert done["changed"]
    assert done["problems"] == [f"{tmp_path}/file/two: File exists"]
    assert [(tmp_path / name).read_text() for name in ("one", "three")] == ["1\n", "3\n"]
    again = client_files(tmp_path, state="write", files=[files[0], files[2]])
    assert not again["changed"]
    gone = client_files(tmp_path, state="write", files=[{**files[0], "content": None, "folders": 0}])
    assert gone["changed"]
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_module_writes_files_that_everybody_reads_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    file = {"key": "new", "path": str(tmp_path / "etc/conda/.condarc"), "user": "", "content": "1\n"}
    client_files(tmp_path, umask=umask, state="write", files=[file], memory=str(tmp_path / "memory/client.json"))
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("etc", "etc/conda", "etc/conda/.condarc")]
    assert modes == [0o755, 0o755, 0o644]


def test_module_says_why_a_file_cannot_be_written_when_it_reads_it(tmp_path: Path) -> None:
    files = [{"key": key, "path": path, "user": ""} for key, path in (("a", "/proc/x"), ("b", str(tmp_path / "b/c")))]
    read = client_files(tmp_path, state="read", files=files)["files"]
    assert [file["unwritable"] != "" for file in read] == [True, False]


def test_module_knows_the_users_of_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are remembered, and those who have our lines, in whichever of the files."""
    homes = {name: tmp_path / name for name in ("alice", "bob", "carol")}
    files = [{"path": "~/.condarc"}, {"path": "~/.config/pip/pip.conf"}]
    for name, path, text in (
        ("alice", ".config/pip/pip.conf", client.apply_pip("[global]\n", PIP)),
        ("bob", ".condarc", "auto: 1\n"),
        ("carol", ".condarc", client.apply_conda(None, CONDA)),
    ):
        (homes[name] / path).parent.mkdir(parents=True)
        (homes[name] / path).write_text(text)
    monkeypatch.setattr(module, "people", lambda: list(homes))
    monkeypatch.setattr(module, "acting_as", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(module, "home", homes.__getitem__)
    memory = tmp_path / "memory.json"
    module.remember(str(memory), ["dave"])
    assert module.find(files, str(memory)) == ["dave", "alice", "carol"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root remembers users")
def test_module_remembers_a_user_until_the_lines_are_out(tmp_path: Path) -> None:
    memory = tmp_path / "memory/client.json"
    me = pwd.getpwuid(os.geteuid()).pw_name
    wanted = {"key": "a", "path": str(tmp_path / "a"), "user": "", "content": "1\n"}
    client_files(tmp_path, state="write", files=[wanted], users=[me], memory=str(memory))
    assert module.remembered(str(memory)) == [me]
    again = client_files(tmp_path, state="write", files=[wanted], users=[me], memory=str(memory))
    assert not again["changed"]
    # Dropped from client_users, and nothing of theirs failed.
    gone = client_files(tmp_path, state="write", files=[], users=[], memory=str(memory))
    assert (gone["changed"], module.remembered(str(memory))) == (True, [])


def test_module_in_check_mode_writes_nothing(tmp_path: Path) -> None:
    file = {"key": "new", "path": str(tmp_path / "deep" / "new"), "user": "", "content": "1\n"}
    done = client_files(tmp_path, state="write", files=[file], _ansible_check_mode=True)
    assert done["changed"]
    assert done["diff"][0]["after"] == "1\n"
    assert list(tmp_path.iterdir()) == []


def test_module_says_whose_home_is_not_there(tmp_path: Path) -> None:
    known = {entry.pw_name: Path(entry.pw_dir) for entry in pwd.getpwall()}
    homeless = next((name for name, folder in known.items() if not folder.is_dir()), "")
    files = [{"key": f"~{user}/.condarc", "path": "~/.condarc", "user": user} for user in (homeless, "no-such-user")]
    read = client_files(tmp_path, state="read", files=files)["files"]
    assert [file["gone"] for file in read] == [True, True]
    assert "which is no directory" in read[0]["problem"]
    assert read[1]["problem"] == "there is no user no-such-user"


def test_module_looks_at_users_and_pips(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    seen = client_files(tmp_path, state="look", users=[me, "no-such-user"])
    assert all(re.fullmatch(r"\d[\d.]*", pip["version"]) for pip in seen["pips"])
    assert (seen["me"], seen["root"], seen["missing"]) == (me, os.geteuid() == 0, ["no-such-user"])


# ---- trust -------------------------------------------------------------------------------------------------

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def test_tools_use_the_trust_store_where_a_root_is_given() -> None:
    assert client.pip_settings("https://mirror.lab.lan", BUNDLE)["cert"] == BUNDLE
    assert client.conda_settings("https://mirror.lab.lan", [], [], BUNDLE)["ssl_verify"] == BUNDLE
    texts = "[global]\ncert = /old.pem\n", "ssl_verify: false\n"
    urls = dict.fromkeys(PATHS, "https://mirror.lab.lan")
    there = client.client_plan(found(*texts), MACHINE, urls, ["main"], [], ca_bundle=BUNDLE)
    new = [str(entry["content"]) for entry in there]
    assert client.parse_pip(new[0])["global"]["cert"] == BUNDLE
    assert yaml.safe_load(new[1])["ssl_verify"] == BUNDLE
    assert tuple(entry["content"] for entry in plan(found(*new), NOWHERE)) == texts


def certificate(name: str, *, authority: bool = True, days: int = 1) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(9))
        .not_valid_after(now + datetime.timedelta(days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    return built.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


def test_each_root_gets_a_file_of_its_own() -> None:
    one, two = certificate("one"), certificate("two")
    found = trust.client_ca_certificates(f"# ours\n{one}\n{two.replace(chr(10), chr(13) + chr(10))}{one}")
    assert [entry["problem"] for entry in found] == [None, None]
    assert found[0]["text"] == one
    assert len({entry["name"] for entry in found}) == 2
    assert trust.client_ca_certificates(one) == found[:1]
    assert trust.client_ca_certificates(" \n") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/etc/ssl/root.pem", "no certificate in PEM form"),
        (certificate("server", authority=False), "a server's certificate"),
        (certificate("old", days=-1), "ended on"),
        (certificate("broken").replace("M", "N"), "cannot read"),
        (certificate("key") + "-----BEGIN PRIVATE KEY-----\n", "private key"),
    ],
)
def test_what_is_no_root_is_refused(text: str, problem: str) -> None:
    assert problem in str(trust.client_ca_certificates(text)[0]["problem"])


# ---- the portal --------------------------------------------------------------------------------------------

ROOT_URL = "/lanmirror-ca.crt"


def shown(role: str, template: str, **variables: Any) -> list[str]:
    """Give the blocks of lines that a person copies from the portal, as they are without a script."""
    page = render(role, template, **variables)
    return [re.sub(r"<[^>]+>", "", block) for block in re.findall(r"(?s)<pre>(.*?)</pre>", page)]


@pytest.mark.parametrize(
    ("scheme", "root", "has", "has_not"),
    [
        ("http", "", ["trusted-host this-server"], ["cert", "native-tls", "ssl_verify", "https://this-server"]),
        ("https", "", [], ["trusted-host", "http://this", "cert", "native-tls", "ssl_verify"]),
        (
            "https",
            ROOT_URL,
            [f"global.cert {BUNDLE}", "native-tls = true", f"ssl_verify: {BUNDLE}", 'tls-root-certs = "system"'],
            ["trusted-host", "http://this"],
        ),
    ],
)
def test_portal_shows_what_the_scheme_needs(scheme: str, root: str, has: list[str], has_not: list[str]) -> None:
    site = {"nginx_site_scheme": scheme, "nginx_site_root_url": root}
    pip, uv = shown("devpi", "devpi-portal.html.j2", **site)
    conda, pixi = shown("conda_mirror", "portal.html.j2", **site)
    text = "\n".join((pip, uv, conda, pixi))
    assert f"{scheme}://this-server/root/pypi/+simple/" in pip
    assert [word for word in has if word not in text] == []
    assert [word for word in has_not if word in text] == []
    index = {"url": f"{scheme}://this-server/root/pypi/+simple/", "default": True}
    assert tomllib.loads(uv) == {**({"native-tls": True} if root else {}), "index": [index]}
    assert set(tomllib.loads(pixi)) == {"mirrors", *(["tls-root-certs"] if root else [])}


@pytest.mark.parametrize("root", ["", ROOT_URL])
@pytest.mark.parametrize(
    ("repos", "cloud"),
    [(["main"], ["conda-forge/noarch", "conda-forge/label/rc/noarch"]), ([], ["a/noarch", "a/label/rc/noarch"])],
)
def test_portal_shows_a_condarc_as_the_role_writes_it(repos: list[str], cloud: list[str], root: str) -> None:
    site = {"nginx_site_root_url": root, "conda_mirror_repos": repos, "conda_mirror_cloud": cloud}
    channels = [entry.rpartition("/")[0] for entry in cloud]
    written = client.conda_settings("http://this-server", repos, channels, BUNDLE if root else "")
    assert yaml.safe_load(shown("conda_mirror", "portal.html.j2", **site)[0]) == written


def test_portal_links_the_root_certificate_where_clients_need_it() -> None:
    assert ROOT_URL not in render("nginx", "00-head.html.j2", nginx_tls="own")
    page = render("nginx", "00-head.html.j2", nginx_tls="site_ca", nginx_port="8080")
    assert f'href="{ROOT_URL}"' in page
    assert f"http://this-server:8080{ROOT_URL}" in re.sub(r"<[^>]+>", "", page)
    # Role client removes what it finds under its own names.
    assert "ca-certificates/lanmirror-" not in page


def test_repos_and_channels_keep_their_order() -> None:
    repos = [f"repo{number}" for number in range(9)]
    channels = [f"channel{number}/label/rc" for number in range(9)]
    found = {
        name: evaluate(
            "client",
            f"{{{{ __client_{name}_there }}}}",
            client_conda_repos=repos,
            client_conda_channels=channels,
            client_conda_missing=["pkgs/repo4", "cloud/channel7/label/rc"],
        )
        for name in ("repos", "channels")
    }
    # The order is that of priority, and another one at each run would change the file each time.
    assert found == {"repos": repos[:4] + repos[5:], "channels": channels[:7] + channels[8:]}
