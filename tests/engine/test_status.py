"""What the mirror tells of itself: to people, to mirrorz, to Prometheus."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from lanmirror_sync import __version__

from tests.engine.lab import Lab

LINUX = "pkgs/main/linux-64"
VICTIM = "lib0003-1.3-0.conda"
SAMPLE = re.compile(r'lanmirror_conda_[a-z_]+(\{subdir="[^"]+"\})? -?[0-9.e+]+')


def public(lab: Lab, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((lab.mirror / ".lanmirror/public" / name).read_bytes())
    return data


def test_a_run_that_went_well(lab: Lab) -> None:
    lab.settings["metrics_file"] = str(lab.folder / "conda.prom")
    lab.settings["site"] = {"url": "https://mirror.lab.lan", "abbr": "LAB", "name": "The lab's mirror"}
    lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}
    before = time.time()
    assert lab.sync().code == 0

    status = public(lab, "status.json")
    assert status["version"] == __version__
    assert status["run"]["result"] == "in sync"
    subdir = status["subdirs"][LINUX]
    files = [file for file in (lab.mirror / LINUX).iterdir() if file.name.endswith((".conda", ".tar.bz2"))]
    assert (subdir["held"], subdir["missing"]) == (len(files), 0)
    assert subdir["bytes"] == sum(file.stat().st_size for file in files)
    assert subdir["failures"] == []
    assert before <= subdir["last_success"] <= time.time()
    assert subdir["upstream"].startswith(f"{lab.upstream.url}/{LINUX}/repodata.json")
    assert status["installers"]["miniconda"]["held"] == 1

    mirrorz = public(lab, "mirrorz.json")
    assert mirrorz["version"] == 1.7
    assert mirrorz["site"] == {"url": "https://mirror.lab.lan", "abbr": "LAB", "name": "The lab's mirror"}
    (mirror,) = mirrorz["mirrors"]
    assert re.fullmatch(r"S\d{10}", mirror["status"])
    assert (mirror["cname"], mirror["url"]) == ("anaconda", "/anaconda")

    metrics = (lab.folder / "conda.prom").read_text()
    samples = [line for line in metrics.splitlines() if not line.startswith("#")]
    assert [line for line in samples if not SAMPLE.fullmatch(line)] == []
    assert f'lanmirror_conda_packages{{subdir="{LINUX}"}} {len(files)}' in samples
    assert "lanmirror_conda_run_success 1.0" in samples


def test_a_run_that_did_not(lab: Lab) -> None:
    lab.settings["metrics_file"] = str(lab.folder / "conda.prom")
    assert lab.sync().code == 0
    success = public(lab, "status.json")["subdirs"][LINUX]["last_success"]
    (lab.mirror / LINUX / VICTIM).unlink()
    lab.fault(f"*/{VICTIM}", status=404)
    assert lab.sync().code == 1

    status = public(lab, "status.json")
    subdir = status["subdirs"][LINUX]
    assert status["run"]["result"] == "incomplete"
    assert (subdir["missing"], subdir["last_success"]) == (1, success)
    assert VICTIM in subdir["failures"][0]
    assert status["subdirs"]["pkgs/main/noarch"]["last_success"] > success
    assert re.fullmatch(r"F\d{10}O\d{10}", public(lab, "mirrorz.json")["mirrors"][0]["status"])
    assert "lanmirror_conda_run_success 0.0" in (lab.folder / "conda.prom").read_text()

    lab.upstream.faults.clear()
    assert lab.sync().code == 0
    assert public(lab, "status.json")["subdirs"][LINUX]["failures"] == []


def test_an_upstream_that_is_down_is_told(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.settings["upstream"] = {"repo": "http://lab:s3cret-word@127.0.0.1:9", "cloud": "http://127.0.0.1:9"}
    assert lab.sync().code == 5
    status = public(lab, "status.json")
    assert status["run"]["result"] == "failed"
    assert "can be reached" in status["run"]["error"]
    assert status["subdirs"][LINUX]["failures"]
    assert "s3cret-word" not in json.dumps(status) + json.dumps(public(lab, "mirrorz.json"))


def test_what_the_cache_on_demand_has_is_told(lab: Lab) -> None:
    file = lab.folder / "cache.json"
    lab.settings["metrics_file"] = str(lab.folder / "conda.prom")
    lab.settings["cache_report"] = str(file)
    assert lab.sync().code == 0
    assert public(lab, "status.json")["cache"] is None
    assert "requests_total" not in (lab.folder / "conda.prom").read_text()
    held = {"packages": 3, "bytes": 700, "checked": 2, "unchecked": 1}
    sent = {
        "hits": 5,
        "misses": 4,
        "stale": 2,
        "errors": 1,
        "mirror_bytes": 10,
        "cache_bytes": 20,
        "upstream_bytes": 30,
    }
    channel = {**held, **sent}
    wrong = {"path": "/cloud/a/noarch/x-1-0.conda", "why": "it has 1 bytes instead of 2", "at": 5.0, "upstream": ""}
    told = {"written": 7.0, "channels": {"cloud/a": channel}, "wrong_total": 1, "wrong": [wrong], "problem": ""}
    file.write_text(json.dumps(told))
    assert lab.sync().code == 0
    assert public(lab, "status.json")["cache"] == told
    lines = (lab.folder / "conda.prom").read_text().splitlines()
    for name, labels, value in (
        *(("requests_total", f',result="{result}"', str(count)) for result, count in
          {"hit": 5, "miss": 4, "stale": 2, "error": 1}.items()),
        *(("sent_bytes_total", f',source="{source}"', str(count)) for source, count in
          {"mirror": 10, "cache": 20, "upstream": 30}.items()),
        ("cache_packages", "", "3"),
        ("cache_bytes", "", "700"),
        ("cache_unchecked_packages", "", "1"),
    ):  # fmt: skip
        assert f'lanmirror_conda_{name}{{channel="cloud/a"{labels}}} {value}' in lines
        assert f"# TYPE lanmirror_conda_{name} {'counter' if name.endswith('_total') else 'gauge'}" in lines
    assert "lanmirror_conda_cache_wrong_total 1" in lines
    assert "# TYPE lanmirror_conda_cache_wrong_total counter" in lines
    assert "# TYPE lanmirror_conda_packages gauge" in lines
