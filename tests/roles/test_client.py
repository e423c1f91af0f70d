"""The text functions of role client: what goes in, what stays, what comes out again."""

from __future__ import annotations

import configparser
import datetime
import re
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.roles.render import python_file

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
            if section != "global" or name not in PIP:
                assert after[section][name] == value
    assert client.apply_pip(result, PIP) == result
    assert client.remove(result) == text


@given(st.text())
def test_any_text_is_edited_or_refused(text: str) -> None:
    for apply, settings in ((client.apply_pip, PIP), (client.apply_conda, CONDA)):
        try:
            result = apply(text, settings)
        except client.SettingsError:
            continue
        assert client.remove(result) == text
        assert apply(result, settings) == result


# ---- conda -------------------------------------------------------------------------------------------------


def test_conda_settings() -> None:
    assert CONDA == {
        "show_channel_urls": True,
        "default_channels": ["http://192.0.2.10/anaconda/pkgs/main", "http://192.0.2.10/anaconda/pkgs/r"],
        "custom_channels": {"conda-forge": "http://192.0.2.10/anaconda/cloud"},
    }
    assert client.conda_settings(URL, [], []) == {"show_channel_urls": True}


def test_conda_new_file() -> None:
    text = client.apply_conda(None, CONDA)
    assert text == (
        f"{client.BEGIN} [new file]\n"
        "show_channel_urls: true\n"
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
    assert after == {**before, **CONDA, "custom_channels": merged}
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
        ("~\n", 1),
        ("{a: 1}\n", 1),
        ("a: 1\nb: 2\na: 3\n", 3),
        ("a: !thing 1\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\n\tb: 2\n", 2),
        ("default_channels: &x [a]\nother: *x\n", None),
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
    assert yaml.safe_load(result) == {**before, **CONDA, "custom_channels": merged}
    assert client.apply_conda(result, CONDA) == result
    assert client.remove(result) == text
    other = client.conda_settings("https://other.lan", ["main"], [])
    assert client.apply_conda(result, other) == client.apply_conda(text, other)


# ---- the plan ----------------------------------------------------------------------------------------------

PATHS = {
    "pip": {"machine": "/etc/pip.conf", "user": "~/.config/pip/pip.conf"},
    "conda": {"machine": "/etc/conda/.condarc", "user": "~/.condarc"},
}


NOWHERE = dict.fromkeys(PATHS, "")


def test_targets_of_the_machine_and_of_users() -> None:
    machine = client.client_targets(["pip", "conda"], [], PATHS)
    assert [(t["key"], t["user"]) for t in machine] == [("/etc/pip.conf", ""), ("/etc/conda/.condarc", "")]
    users = client.client_targets(["conda"], ["alice", "bob"], PATHS)
    assert [(t["key"], t["user"], t["path"]) for t in users] == [
        ("~alice/.condarc", "alice", "~/.condarc"),
        ("~bob/.condarc", "bob", "~/.condarc"),
    ]


def files(pip: str | None, conda: str | None, problem: str = "") -> list[dict[str, object]]:
    targets = client.client_targets(["pip", "conda"], [], PATHS)
    return [
        {"client_target": target, "path": target["path"], "content": text, "problem": problem}
        for target, text in zip(targets, (pip, conda), strict=True)
    ]


def test_plan_there_and_back() -> None:
    there = client.client_plan(files(None, "x: 1\n"), dict.fromkeys(PATHS, URL), ["main"], [])
    assert all(entry["problem"] is None for entry in there.values())
    texts = [entry["content"] for entry in there.values()]
    back = client.client_plan(files(*texts), NOWHERE, [], [])
    assert back == {
        "/etc/pip.conf": {"content": None, "problem": None},
        "/etc/conda/.condarc": {"content": "x: 1\n", "problem": None},
    }


def test_plan_absent_where_nothing_is() -> None:
    plan = client.client_plan(files(None, ""), NOWHERE, [], [])
    assert [entry["content"] for entry in plan.values()] == [None, ""]


def test_plan_names_file_and_line() -> None:
    plan = client.client_plan(files("[global]\nx\n", "a: [\n"), dict.fromkeys(PATHS, URL), ["main"], [])
    assert plan["/etc/pip.conf"]["problem"] == "/etc/pip.conf, line 2: pip cannot read this line"
    assert str(plan["/etc/conda/.condarc"]["problem"]).startswith("/etc/conda/.condarc, line 2: it is not YAML")


def test_plan_passes_on_why_a_file_cannot_be_read() -> None:
    plan = client.client_plan(files(None, None, "/etc/pip.conf: denied"), dict.fromkeys(PATHS, URL), [], [])
    assert plan["/etc/pip.conf"] == {"content": None, "problem": "/etc/pip.conf: denied"}


def test_plan_takes_out_the_half_that_is_not_there() -> None:
    there = client.client_plan(files("[global]\n", "x: 1\n"), dict.fromkeys(PATHS, URL), ["main"], [])
    texts = [entry["content"] for entry in there.values()]
    half = client.client_plan(files(*texts), {"pip": "https://pypi.lab.lan", "conda": ""}, ["main"], [])
    assert "https://pypi.lab.lan/root" in str(half["/etc/pip.conf"]["content"])
    assert half["/etc/conda/.condarc"] == {"content": "x: 1\n", "problem": None}


def test_addresses_of_servers_go_to_the_hosts_file() -> None:
    ours = client.client_hosts({"pypi.lab.lan": "192.0.2.10", "conda.lab.lan": "192.0.2.11"})
    assert ours == ["192.0.2.10 pypi.lab.lan # lanmirror", "192.0.2.11 conda.lab.lan # lanmirror"]
    other = client.client_other_hosts(ours)
    lines = [
        *ours,
        "192.0.2.9 pypi.lab.lan # lanmirror",
        "192.0.2.12 pypi.lab.lan",
        "192.0.2.10 pypi.lab.lan.x # lanmirror",
    ]
    assert [line for line in lines if re.search(other, line)] == [lines[2], lines[4]]
    assert re.search(client.client_other_hosts([]), ours[0])


# ---- the module --------------------------------------------------------------------------------------------


def test_module_writes_through_a_link_and_keeps_the_mode(tmp_path: Path) -> None:
    module = python_file(ROLE / "library" / "client_file.py")
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


# ---- trust -------------------------------------------------------------------------------------------------

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def test_tools_use_the_trust_store_where_a_root_is_given() -> None:
    assert client.pip_settings("https://mirror.lab.lan", BUNDLE)["cert"] == BUNDLE
    assert client.conda_settings("https://mirror.lab.lan", [], [], BUNDLE)["ssl_verify"] == BUNDLE
    texts = "[global]\ncert = /old.pem\n", "ssl_verify: false\n"
    there = client.client_plan(files(*texts), dict.fromkeys(PATHS, "https://mirror.lab.lan"), [], [], ca_bundle=BUNDLE)
    new = [str(entry["content"]) for entry in there.values()]
    assert client.parse_pip(new[0])["global"]["cert"] == BUNDLE
    assert yaml.safe_load(new[1])["ssl_verify"] == BUNDLE
    back = client.client_plan(files(*new), NOWHERE, [], [])
    assert tuple(entry["content"] for entry in back.values()) == texts


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
