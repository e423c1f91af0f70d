"""The alert rules and the dashboard of docs/monitoring, held against the metrics that the real programs write."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from lanmirror_sync.config import DEFAULTS as ENGINE
from lanmirror_sync.health import CACHE_SECONDS, INTERVALS

from roles.devpi.files.lanmirror_ops.malware import OLD
from tests.cache.lab import lab, until
from tests.devpi.conftest import (  # noqa: F401 - fixtures
    Devpi,
    empty_database,
    serving,
    start_devpi,
    venv_of_devpi,
)
from tests.roles.conda_site import FORGE, MAIN
from tests.roles.render import ROOT, defaults, render
from tests.roles.test_documents import anchors

PAGE = ROOT / "docs/monitoring.md"
RULES = ROOT / "docs/monitoring/alerts.yml"
DASHBOARD = ROOT / "docs/monitoring/dashboard.json"
# What Prometheus itself gives each sample.
OWN_LABELS = {"instance", "job"}
# Of those that Prometheus knows, those that are used.
FUNCTIONS = {"clamp_min", "increase", "max_over_time", "predict_linear", "rate", "sum", "time"}
WORDS = {"and", "or", "unless", "offset"}
GROUPING = {"by", "without", "on", "ignoring"}
# Panels that are a part of Grafana.
PANELS = {"bargauge", "row", "stat", "state-timeline", "table", "timeseries"}
WIDTH = 24

# The values of each label of each metric.
Written = dict[str, dict[str, set[str]]]


# ---- what is written ------------------------------------------------------------------------------------------


def samples(text: str) -> Written:
    """Return what a file for node_exporter's textfile collector has."""
    found: Written = {}
    for line in text.splitlines():
        if sample := re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line):
            labels = found.setdefault(sample[1], defaultdict(set))
            for label, value in re.findall(r'(\w+)="([^"]*)"', sample[2] or ""):
                labels[label].add(value)
        else:
            assert re.match(r"# (?:HELP|TYPE) \w+ ", line), line
    return found


def pypi(devpi: Devpi, venv: Path, folder: Path) -> Written:
    """Have the commands of devpi's units look after a devpi, and return what they write."""
    advisory = {"id": "MAL-2026-1", "affected": [{"package": {"ecosystem": "PyPI", "name": "lab-evil"}}]}
    (folder / "malware.json").write_text(json.dumps(advisory))
    for name in ("prefix", "public"):
        (folder / name).mkdir()
    (folder / "prefix/current").symlink_to(venv)
    metrics = folder / "pypi.prom"
    settings = folder / "lanmirror.toml"
    text = render(
        "devpi",
        "lanmirror.toml.j2",
        __devpi_url=devpi.url,
        __devpi_data_dir=str(devpi.data),
        __devpi_prefix=str(folder / "prefix"),
        __devpi_served_log=str(folder / "served.log"),
        __devpi_watch_public=str(folder / "public"),
        __devpi_upstreams_file=devpi.options["lanmirror-upstreams"],
        devpi_malware_list=str(folder / "malware.json"),
        devpi_metrics_file=str(metrics),
    )
    settings.write_text(text.replace("/var/lib/devpi-watch/state.sqlite", str(folder / "state.sqlite")))
    command = [sys.executable, "-m", "lanmirror_ops", "--settings", str(settings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "roles/devpi/files")}
    for once in ("evict", "malware"):
        done = subprocess.run([*command, once], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    watch = subprocess.Popen([*command, "watch"], env=environment)
    try:
        until(metrics.exists)
    finally:
        watch.terminate()
        assert watch.wait(60) == 0
    return samples(metrics.read_text())


def conda(folder: Path) -> Written:
    """Have a mirror with a cache on demand, run all that looks after it, and return what the engine writes."""
    with lab(folder) as ours:
        paths = [ours.build("example", MAIN), ours.build("other", FORGE)]
        ours.publish()
        assert [ours.get(path).status for path in paths] == [200, 200]
        command = [sys.executable, "-m", "lanmirror_cache", *ours.options, "watch"]
        cache = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "files")})
        try:
            until((ours.places.state / "cache.json").exists)
        finally:
            cache.terminate()
            assert cache.wait(60) == 0
        for run in ("sync", "verify"):
            command = [sys.executable, str(ROOT / "files/anaconda_sync.py"), run, "--config", f"{folder}/engine.yml"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        return samples((folder / "conda.prom").read_text())


@pytest.fixture(scope="module")
def written(
    start_devpi: Callable[..., Devpi],  # noqa: F811
    venv_of_devpi: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Written:
    """Return the metrics of a server with both halves, and those that Prometheus makes of the rules."""
    folder = tmp_path_factory.mktemp("pypi")
    with serving() as first, serving() as second:
        devpi = start_devpi(lanmirror_upstreams=str(folder / "upstreams.json"))
        second.page("six", [second.file("six-1.0.tar.gz", b"six")])
        devpi.mirror("root/pypi", first, fallback_urls=[f"{second.url}/simple/"])
        first.answer["/simple/six/"] = 503, {}, b""
        assert devpi.get("/root/pypi/+simple/six/").status_code == 200
        told = pypi(devpi, venv_of_devpi, folder)
        devpi.stop()
    alerts = {"alertname": {rule["alert"] for rule in rules()}, "alertstate": {"firing", "pending"}}
    return {**told, **conda(tmp_path_factory.mktemp("conda")), "ALERTS": alerts}


# ---- what is asked for ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """What an expression of PromQL names.

    Attributes:
        metrics: each with its matchers: label, operator, value.
        labels: those that it groups or joins by.
        functions: those that it calls.
    """

    metrics: list[tuple[str, list[tuple[str, str, str]]]]
    labels: set[str]
    functions: set[str]


def query(expression: str) -> Query:
    """Return what an expression names."""
    found = Query([], set(), set())
    matcher = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*,?')
    rest = expression
    while rest := rest.lstrip():
        if word := re.match(r"([a-zA-Z_]\w*)?\s*\{([^}]*)\}", rest):
            matchers = matcher.findall(word[2])
            assert matcher.sub("", word[2]) == "", word[2]
            names = (word[1] or next(one for label, _, one in matchers if label == "__name__")).split("|")
            found.metrics.extend((name, [one for one in matchers if one[0] != "__name__"]) for name in names)
        elif word := re.match(rf"(?:{'|'.join(GROUPING)})\s*\(([\w, ]+)\)", rest):
            found.labels.update(re.findall(r"\w+", word[1]))
        elif word := re.match(r"([a-zA-Z_]\w*)(?=\s*\(|\s+by\b|\s+without\b)", rest):
            if word[1] not in WORDS:
                found.functions.add(word[1])
        elif word := re.match(r"[a-zA-Z_]\w*", rest):
            if word[0] not in WORDS:
                found.metrics.append((word[0], []))
        else:
            word = re.match(r"\[[\w$]+\]|\d[\w.]*|[-+*/^<>=!(),]", rest)
            assert word, f"{expression}: {rest}"
        rest = rest[word.end() :]
    return found


def asked(expression: str) -> Query:
    """Return what an expression names, which only calls what there is, with parentheses that close."""
    assert expression.count("(") == expression.count(")")
    found = query(expression)
    assert found.metrics
    assert found.functions <= FUNCTIONS
    return found


def wrongs(found: Query, written: Written, *used: str) -> Iterator[str]:
    """Yield what a query, and texts that use the labels of its result, name that is not written."""
    labels: set[str] = set(OWN_LABELS)
    for name, matchers in found.metrics:
        if name not in written:
            yield f"no metric {name}"
            continue
        labels |= written[name].keys()
        for label, operator, value in matchers:
            if label in OWN_LABELS:
                continue
            values = written[name].get(label)
            if values is None:
                yield f"{name} has no label {label}"
            elif "~" in operator:
                # Each of the alternatives is something.
                parts = value.split("|")
                yield from (f"{name} has no {part}" for part in parts if not any(re.fullmatch(part, x) for x in values))
            elif value not in values:
                yield f"{name} has no {label} {value}"
    for label in (*found.labels, *used):
        if label not in labels:
            yield f"no label {label}"


def rules() -> list[dict[str, Any]]:
    """Return the rules."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return board


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


# ---- the rules ------------------------------------------------------------------------------------------------


def test_query_is_read_as_prometheus_reads_it() -> None:
    text = 'sum by (a, b) (rate(x_total{c="d",e=~"f|g"}[$__rate_interval])) / 5 * 1024 ^ 3 > 0 and y unless z offset 6h'
    assert query(text) == Query(
        [("x_total", [("c", "=", "d"), ("e", "=~", "f|g")]), ("y", []), ("z", [])], {"a", "b"}, {"sum", "rate"}
    )
    assert query('{__name__=~"a|b",c="d"} or time() - sum(e) without (f) < 1').metrics == [
        ("a", [("c", "=", "d")]),
        ("b", [("c", "=", "d")]),
        ("e", []),
    ]


def test_rules_name_what_is_written(written: Written) -> None:
    found = {}
    for rule in rules():
        texts = " ".join(rule["annotations"].values())
        used = re.findall(r"\$labels\.(\w+)", texts)
        found[rule["alert"]] = list(wrongs(asked(rule["expr"]), written, *used))
    assert {alert: wrong for alert, wrong in found.items() if wrong} == {}


def test_rules_are_whole() -> None:
    groups = yaml.safe_load(RULES.read_text())
    assert list(groups) == ["groups"]
    assert [group.keys() - {"name", "rules"} for group in groups["groups"]] == [set()] * len(groups["groups"])
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Lanmirror(Pypi|Conda)\w+", rule["alert"])
        assert re.fullmatch(r"[1-9]\d*[mh]", rule["for"])
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
        # Whose it is, and what to do.
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        pages = re.findall(r"\b(docs/[\w-]+\.md)(?:#([\w-]+))?", rule["annotations"]["description"])
        assert pages
        for page, anchor in pages:
            assert (ROOT / page).exists(), page
            assert not anchor or anchor in anchors(ROOT / page), (page, anchor)


def test_numbers_of_the_rules_are_those_that_health_judges_by() -> None:
    expressions = {rule["alert"]: " ".join(rule["expr"].split()) for rule in rules()}
    free = defaults("conda_mirror")["conda_mirror_min_free_gib"]
    assert expressions["LanmirrorCondaDiskLow"].endswith(f" < {free} * 1024 ^ 3")
    assert expressions["LanmirrorPypiMalwareListOld"].endswith(f" > {OLD / 86400:g} * 86400")
    days = ENGINE["health"]["sync_hours"] // 24
    assert f" > {days} * 86400 " in expressions["LanmirrorCondaSyncOverdue"]
    assert f" > {days} * 86400 )" in expressions["LanmirrorCondaIndexOld"]
    # conda_mirror_index_minutes is an hour at most.
    assert f" > {INTERVALS} * 3600 " in expressions["LanmirrorCondaIndexOld"]
    assert expressions["LanmirrorCondaCacheUnchecked"].endswith(f" > {CACHE_SECONDS:g}")


def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


# ---- the dashboard --------------------------------------------------------------------------------------------


def test_dashboard_names_what_is_written(written: Written) -> None:
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            used = re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"])
            asks = asked(target["expr"])
            found[panel["title"], target["refId"]] = list(wrongs(asks, written, *used))
            # A sum has no label beside those that it is grouped by.
            assert "sum" not in asks.functions or set(used) <= asks.labels, target["expr"]
            # The choice of servers counts for each of them.
            assert all(("instance", "=~", "$instance") in matchers for _, matchers in asks.metrics), target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            asks_for = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asks_for
            found["variable", variable["name"]] = list(wrongs(asked(asks_for[1]), written, asks_for[2]))
    assert {where: wrong for where, wrong in found.items() if wrong} == {}


def test_dashboard_is_one_that_grafana_takes() -> None:
    board = dashboard()
    assert board["id"] is None
    assert board["uid"] == "lanmirror"
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    named = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(board)))
    assert named == {"datasource", "instance", "__range", "__rate_interval", "__all"}
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] in PANELS
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [source] * (
            len(references) + 1
        )


# ---- the page -------------------------------------------------------------------------------------------------


def test_page_has_each_alert_with_its_severity() -> None:
    rows = re.findall(r"(?m)^\| `(Lanmirror\w+)` \| (\w+) \|", PAGE.read_text())
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in rules()]
