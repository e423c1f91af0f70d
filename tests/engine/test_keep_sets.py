"""Keep-sets: what a lab's environment files need is held, so that a client installs it from the mirror alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pytest
import rattler
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lanmirror_sync.answers import Validators
from lanmirror_sync.closure import Offers, unmet
from lanmirror_sync.config import Options
from lanmirror_sync.config import parse as parse_config
from lanmirror_sync.keeping import channels_of
from lanmirror_sync.keepsets import KeepSetError, Locked, gather, read
from lanmirror_sync.memory import Memory
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.plan import ALL_SHOWN
from lanmirror_sync.repodata import parse as parse_index
from lanmirror_sync.store import Store
from lanmirror_sync.survey import Survey
from lanmirror_sync.upstream import Sent
from rattler.channel.channel_priority import ChannelPriority
from rattler.exceptions import SolverError

from tests.engine.lab import Engine, Lab
from tests.upstream import channel, graph, server
from tests.upstream.graph import Node

FORGE = "https://conda.anaconda.org/conda-forge"
LINUX, NOARCH = f"{graph.FORGE}/linux-64", f"{graph.FORGE}/noarch"
SCIENCE = ("python=3.11", "numpy", "scipy", "pandas", "matplotlib", "jupyterlab")
# A newer machine than is taken for granted, and one with a GPU.
MACHINE = (("__glibc", "2.36", "0"), ("__linux", "6.1", "0"), ("__unix", "0", "0"), ("__cuda", "12.4", "0"))


def machine() -> list[rattler.GenericVirtualPackage]:
    return [
        rattler.GenericVirtualPackage(
            rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build)
        )
        for name, version, build in MACHINE
    ]  # fmt: skip


def solved(
    sources: Sequence[Any], specs: Iterable[str], priority: ChannelPriority = ChannelPriority.Strict
) -> list[rattler.RepoDataRecord]:
    """Return what a client chooses from channels, or indexes, for linux-64."""

    async def solve() -> list[rattler.RepoDataRecord]:
        return await rattler.solve(
            sources, [*specs], gateway=rattler.Gateway(), platforms=["linux-64", "noarch"],
            virtual_packages=machine(), channel_priority=priority,
        )  # fmt: skip

    return asyncio.run(solve())


def installed(records: Sequence[rattler.RepoDataRecord], folder: Path) -> set[str]:
    """Install packages; return the names of those that are in the environment then."""
    asyncio.run(rattler.install([*records], folder / "env", cache_dir=folder / "packages", show_progress=False))
    names = {file.name for file in (folder / "env/conda-meta-of-tests").iterdir()}
    assert names == {record.name.source for record in records}
    return names


# ---- the files ---------------------------------------------------------------------------------------------------

SHA256, MD5 = "ab" * 32, "cd" * 16
PACKAGE = f"{FORGE}/linux-64/a-1-0.conda"
PIXI = f"""\
version: 6
environments:
  default:
    channels:
    - url: {FORGE}/
    packages:
      linux-64:
      - conda: {PACKAGE}
      - pypi: https://files.example/six-1.16.0-py3-none-any.whl
packages:
- conda: {PACKAGE}
  sha256: {SHA256}
  md5: {MD5}
- pypi: https://files.example/six-1.16.0-py3-none-any.whl
  name: six
  version: 1.16.0
"""
CONDA_LOCK = f"""\
version: 1
metadata: {{platforms: [linux-64]}}
package:
- {{name: a, manager: conda, platform: linux-64, url: '{PACKAGE}', hash: {{md5: {MD5}, sha256: {SHA256}}}}}
- {{name: six, version: '1', manager: pip, platform: linux-64, url: 'https://files.example/six.whl', hash: {{}}}}
"""


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("pixi.lock", PIXI, [Locked(PACKAGE, SHA256, MD5)]),
        ("conda-lock.yml", CONDA_LOCK, [Locked(PACKAGE, SHA256, MD5)]),
        ("a.txt", f"# platform: linux-64\n@EXPLICIT\n{PACKAGE}\n", [Locked(PACKAGE)]),
        ("a.txt", f"@EXPLICIT\r\n{PACKAGE}#{MD5}\r\n", [Locked(PACKAGE, "", MD5)]),
        ("a.lock", f"@EXPLICIT\n{PACKAGE}#sha256:{SHA256}", [Locked(PACKAGE, SHA256)]),
        ("a.yml", f"@EXPLICIT\n{PACKAGE}#{SHA256}", [Locked(PACKAGE, SHA256)]),
    ],
)
def test_lock_file_names_urls_and_hashes(tmp_path: Path, name: str, text: str, wanted: list[Locked]) -> None:
    file = tmp_path / name
    file.write_text(text)
    found = read(file, text.encode())
    assert found
    assert ([*found.locked], found.specs) == (wanted, ())


def test_environment_names_specs_channels_and_platforms() -> None:
    text = b"channels: [pytorch, nodefaults]\nplatforms: [linux-64]\ndependencies: [numpy >=1, pip, {pip: [six]}]\n"
    found = read(Path("environment.yml"), text)
    assert found
    assert found.specs == ("numpy >=1", "pip")
    assert (found.channels, found.platforms, found.locked) == (("pytorch", "nodefaults"), ("linux-64",), ())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yml", b"name: a", "has no dependencies"),
        ("a.yml", b"dependencies: numpy", "no list"),
        ("a.yml", b"dependencies: []", "no dependencies of Conda"),
        ("a.yml", b"dependencies: [{pip: [six]}]", "no dependencies of Conda"),
        ("a.yml", b"dependencies: [{conda: [six]}]", "a dependency that is none"),
        ("a.yml", b"dependencies: [a]\nchannels: forge", "channels that are no list"),
        ("a.yml", b"dependencies: [a", "is not YAML"),
        ("a.yml", b"\xff", "no text"),
        ("a.txt", b"@EXPLICIT\nnumpy=1.0\n", "no URL of a package: 'numpy=1.0'"),
        ("a.txt", f"@EXPLICIT\n{PACKAGE}#abc".encode(), "no URL of a package"),
        ("a.yml", b"metadata: {}\npackage: {a: 1}", "a package list that is none"),
        ("a.yml", b"metadata: {}\npackage: [{name: a}]", "a package without a URL: 'a'"),
        ("pixi.lock", b"version: 6", "no lock file of pixi"),
    ],
)
def test_damaged_file_is_refused_with_the_reason(tmp_path: Path, name: str, text: bytes, words: str) -> None:
    file = tmp_path / name
    file.write_bytes(text)
    with pytest.raises(KeepSetError, match=words):
        read(file, text)
    found = gather(file)
    assert found.sets == ()
    assert str(file) in found.problems[0]


def test_folder_is_read_with_all_below_it_and_what_is_no_keep_set_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "group/of one").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    environment = "dependencies: [numpy]\n"
    (tmp_path / "a.yml").write_text(environment)
    (tmp_path / "group/of one/b.yaml").write_text(environment)
    (tmp_path / "group/list.txt").write_text(f"@EXPLICIT\n{PACKAGE}\n")
    (tmp_path / "requirements.txt").write_text("six\n")
    (tmp_path / "README.md").write_text("read me\n")
    (tmp_path / ".git/c.yml").write_text("no: one\n")
    found = gather(tmp_path)
    assert [Path(keep.path).name for keep in found.sets] == ["a.yml", "list.txt", "b.yaml"]
    assert found.problems == ()
    assert gather(tmp_path).digest == found.digest
    (tmp_path / "a.yml").write_text("dependencies: [scipy]\n")
    assert gather(tmp_path).digest != found.digest


def test_folder_without_a_keep_set_and_path_that_is_not_there_are_problems(tmp_path: Path) -> None:
    assert gather(tmp_path).problems == (f"{tmp_path}: has no keep-set",)
    assert "No such file" in gather(tmp_path / "no").problems[0]
    file = tmp_path / "requirements.txt"
    file.write_text("six\n")
    assert "is no environment.yml" in gather(file).problems[0]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("conda-forge", ["cloud/conda-forge"]),
        ("https://conda.anaconda.org/conda-forge", ["cloud/conda-forge"]),
        ("http://mirror.lab.lan/anaconda/cloud/conda-forge/linux-64/", ["cloud/conda-forge"]),
        ("conda-forge/label/dev", ["cloud/conda-forge/label/dev"]),
        ("defaults", ["pkgs/main", "pkgs/r"]),
        ("main", ["pkgs/main"]),
        ("https://repo.anaconda.com/pkgs/r", ["pkgs/r"]),
        ("forge", []),
        ("pytorch", []),
    ],
)
def test_channel_of_a_file_is_found_by_its_name_or_url(word: str, wanted: list[str]) -> None:
    there = ("pkgs/main", "pkgs/r", "cloud/conda-forge", "cloud/conda-forge/label/dev")
    assert [str(path) for path in channels_of(word, [*map(PurePosixPath, there)])] == wanted


# ---- mirrors -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an upstream of thousands of packages, not to be changed."""
    root = tmp_path_factory.mktemp("forest")
    assert len(graph.lay_out(root)) > 2000
    return root


@pytest.fixture
def make(engine: Engine, tmp_path: Path) -> Iterator[Callable[[Path], Lab]]:
    """Return what makes an empty mirror of both channels below an upstream, with a folder of keep-sets."""
    with contextlib.ExitStack() as stack:

        def made(tree: Path) -> Lab:
            mirror = tmp_path / "mirror"
            mirror.mkdir()
            (tmp_path / "keep").mkdir()
            upstream = stack.enter_context(server.serving(tree))
            lab = Lab(engine, tmp_path, upstream, stack.enter_context(server.serving(mirror)), mirror)
            hold(lab)
            lab.settings |= {"exclude": []}
            return lab

        yield made


@pytest.fixture
def lab(make: Callable[[Path], Lab], forest: Path) -> Lab:
    return make(forest)


@pytest.fixture
def small(make: Callable[[Path], Lab], tmp_path: Path) -> Lab:
    """Return a lab with an upstream of few packages, which may be changed."""
    graph.write(tmp_path / "tree", SMALL)
    return make(tmp_path / "tree")


SMALL = [
    Node(graph.FORGE, "linux-64", "app", "1.0", depends=("base >=1",)),
    Node(graph.FORGE, "linux-64", "app", "2.0", depends=("base >=2", "__unix")),
    Node(graph.FORGE, "noarch", "base", "1.0"),
    Node(graph.FORGE, "noarch", "base", "2.0", depends=("deep",)),
    Node(graph.FORGE, "linux-64", "deep", "1.0"),
    Node(graph.FORGE, "linux-64", "other", "1.0"),
    Node(graph.FORGE, "win-64", "app", "2.0", depends=("base >=2", "__win")),
    Node(graph.MAIN, "noarch", "base", "3.0"),
    Node(graph.MAIN, "linux-64", "unrelated", "1.0"),
]


def hold(lab: Lab, **choice: Any) -> None:
    """Have the mirror hold the keep-sets of the folder."""
    choice = {"keep": [str(lab.folder / "keep")], **choice}
    lab.settings["cloud"] = [{"name": f"conda-forge/{arch}", "hold": choice} for arch in ("noarch", "linux-64")]
    lab.settings["repos"] = [{"name": "main", "hold": choice}]


def keep(lab: Lab, *specs: str, name: str = "environment.yml", **top: Any) -> None:
    """Drop an `environment.yml` into the folder."""
    text = yaml.safe_dump({"name": "lab", "channels": ["conda-forge"], "dependencies": [*specs, {"pip": ["x"]}], **top})
    (lab.folder / "keep" / name).write_text(text)


def everything(lab: Lab) -> set[str]:
    return set().union(*(lab.packages(subdir) for subdir in lab.subdirs))


def files(records: Iterable[rattler.RepoDataRecord]) -> set[str]:
    return {record.file_name for record in records}


def settled(lab: Lab) -> None:
    """Check the mirror, and that a further run has nothing to do."""
    lab.check()
    lab.upstream.requests.clear()
    run = lab.sync()
    assert run.code == 0, run.log
    assert f"{len(lab.subdirs)} of {len(lab.subdirs)} subdirs unchanged" in run.log
    assert not lab.upstream.asked("*.tar.bz2")


@pytest.mark.slow
def test_environment_is_solved_and_installed_from_the_mirror_alone(lab: Lab, tmp_path: Path) -> None:
    keep(lab, *SCIENCE)
    run = lab.sync()
    assert run.code == 0, run.log
    settled(lab)
    named = {name for subdir in lab.subdirs for name in lab.named(f"{subdir}/repodata.json")}
    assert named == everything(lab)
    lab.upstream.stop()
    url = lab.served.url
    for priority in (ChannelPriority.Strict, ChannelPriority.Disabled):
        records = solved([f"{url}/{graph.FORGE}", f"{url}/{graph.MAIN}"], SCIENCE, priority)
        assert all(str(record.url).startswith(url) for record in records)
        # Of thousands some hundred, and each name once.
        assert len(named) == len({name.rsplit("-", 2)[0] for name in named}) == len(records) < 400
    assert {"numpy", "jupyterlab", "python-dateutil", "ca-certificates"} <= installed(records, tmp_path / "client")


# Of older versions than a solver takes today, and a build for a GPU.
LOCKED = {
    "pixi.lock": ["numpy=1.24", "scipy=1.11", "lib0300=1.0"],
    "conda-lock.yml": ["torch * cuda*", "openssl=3.0"],
    "explicit.txt": ["python=3.10", "pandas"],
}


@pytest.mark.slow
def test_lock_files_are_held_exactly_and_installed_from_the_mirror_alone(lab: Lab, tmp_path: Path) -> None:
    chosen = {kind: solved([f"{lab.upstream.url}/{graph.FORGE}"], specs) for kind, specs in LOCKED.items()}
    for kind, records in chosen.items():
        (lab.folder / "keep" / kind).write_text(lock_file(kind, records, lab.upstream.url))
    run = lab.sync()
    assert run.code == 0, run.log
    assert everything(lab) == set().union(*map(files, chosen.values()))
    settled(lab)
    lab.upstream.stop()
    for kind, records in chosen.items():
        exactly = [f"{record.name.source} =={record.version} {record.build}" for record in records]
        ours = solved([f"{lab.served.url}/{graph.FORGE}"], exactly)
        assert files(ours) == files(records)
        installed(ours, tmp_path / kind)


def lock_file(kind: str, records: Sequence[rattler.RepoDataRecord], url: str) -> str:
    """Return a lock file of packages, by the URLs of the official server."""
    urls = {record.file_name: str(record.url).replace(f"{url}/{graph.FORGE}", FORGE) for record in records}
    if kind == "explicit.txt":
        assert all(record.md5 for record in records)
        return "@EXPLICIT\n" + "".join(f"{urls[r.file_name]}#{r.md5.hex()}\n" for r in records if r.md5)
    if kind == "conda-lock.yml":
        packages = [
            {"name": record.name.source, "manager": "conda", "platform": "linux-64", "url": urls[record.file_name],
             "hash": {"sha256": record.sha256.hex()}}
            for record in records if record.sha256
        ]  # fmt: skip
        return yaml.safe_dump({"version": 1, "metadata": {"platforms": ["linux-64"]}, "package": packages})
    head = {"channels": [{"url": FORGE}], "packages": {"linux-64": [{"conda": text} for text in urls.values()]}}
    packages = [{"conda": urls[r.file_name], "sha256": r.sha256.hex()} for r in records if r.sha256]
    return yaml.safe_dump({"version": 6, "environments": {"default": head}, "packages": packages})


@pytest.mark.slow
def test_several_keep_sets_and_a_selection_are_held_together_and_exclude_goes_before(lab: Lab, tmp_path: Path) -> None:
    keep(lab, "numpy", "scipy=1.11", name="a.yml")
    keep(lab, "torch", "pandas", name="b.yml")
    keep(lab, "mkl", "six", name="c.yaml", channels=["defaults", "conda-forge"])
    hold(lab, exclude=["python>=3.12", "numpy=1.26"], include=["tzdata", "lib069*"], keep_latest=1)
    lab.settings["block"] = ["pytz"]
    run = lab.sync()
    # Nothing satisfies `pandas` without `pytz`.
    assert run.code == 1
    assert f"keep-set {lab.folder}/keep/b.yml for linux-64: " in run.log
    assert "pytz" in run.log
    lab.settings["block"] = []
    run = lab.sync()
    assert run.code == 0, run.log
    settled(lab)
    held = everything(lab)
    assert {"tzdata-2024a-h0_0.tar.bz2", "lib0699-1.2-h0_0.tar.bz2", "six-1.17.0-py_0.tar.bz2"} <= held
    assert not {name for name in held if name.startswith(("python-3.12", "numpy-1.26"))}
    lab.upstream.stop()
    forge, main = (f"{lab.served.url}/{path}" for path in (graph.FORGE, graph.MAIN))
    for number, (sources, specs) in enumerate(
        (([forge], ["numpy", "scipy=1.11"]), ([forge], ["torch", "pandas"]), ([main, forge], ["mkl", "six"]))
    ):
        installed(solved(sources, specs), tmp_path / f"client-{number}")


@pytest.mark.slow
def test_index_stays_complete_where_the_rest_comes_on_demand(small: Lab) -> None:
    small.settings["on_demand"] = True
    keep(small, "app")
    run = small.sync()
    assert run.code == 0, run.log
    assert everything(small) == {f"{name}-h0_0.tar.bz2" for name in ("app-2.0", "base-2.0", "deep-1.0")}
    assert small.named(f"{LINUX}/repodata.json") == {*small.repodata_of_upstream(LINUX)["packages"]}
    settled(small)
    assert small.sync("sync", "--indexes").code == 0
    settled(small)


@pytest.mark.slow
def test_what_is_needed_changes_with_the_index_of_another_subdir_alone(small: Lab) -> None:
    keep(small, "app")
    assert small.sync().code == 0
    folder = small.tree / graph.FORGE
    added = channel.Spec("base", "2.5", "h0_0", depends=("other",), extension=".tar.bz2", files={"base": b"base"})
    channel.publish(folder, added)
    for _ in range(2):
        run = small.sync()
        assert run.code == 0, run.log
    # What was held goes after its grace, as ever.
    assert small.named(f"{LINUX}/repodata.json") == {"app-2.0-h0_0.tar.bz2", "other-1.0-h0_0.tar.bz2"}
    assert small.named(f"{NOARCH}/repodata.json") == {added.file_name}
    settled(small)


@pytest.mark.slow
def test_changed_file_changes_what_is_held(small: Lab) -> None:
    keep(small, "app=1.0", "base=1.0")
    assert small.sync().code == 0
    assert everything(small) == {"app-1.0-h0_0.tar.bz2", "base-1.0-h0_0.tar.bz2"}
    keep(small, "other")
    plan = small.plan()["subdirs"][LINUX]
    assert (plan["fetch"]["files"], plan["surplus"]["files"]) == (1, 1)
    assert small.sync().code == 0
    assert small.named(f"{LINUX}/repodata.json") == {"other-1.0-h0_0.tar.bz2"}
    settled(small)


FOREIGN = "https://conda.anaconda.org/pytorch/linux-64/torch-2-0.conda"
APP, OTHER = (f"{FORGE}/linux-64/{name}-h0_0.tar.bz2" for name in ("app-2.0", "other-1.0"))
# Why a file cannot be had, by its name and its text.
WRONG = {
    "unsolved.yml": ("dependencies: [app, base>9]", "unsolved.yml for linux-64: Cannot solve"),
    "spec.yml": ("dependencies: ['app>=']", "spec.yml for linux-64: "),
    "channel.yml": ("channels: [pytorch]\ndependencies: [app]", "its channel 'pytorch' is not mirrored here"),
    "damaged.yml": ("dependencies: [app", "damaged.yml: is not YAML"),
    "gone.txt": (f"@EXPLICIT\n{FORGE}/linux-64/app-9-0.conda", "app-9-0.conda is not in the upstream's index"),
    "sha256.txt": (f"@EXPLICIT\n{APP}#{'0' * 64}", "sha256.txt: app-2.0-h0_0.tar.bz2 has other bytes"),
    "md5.txt": (f"@EXPLICIT\n{APP}#{'0' * 32}", "md5.txt: app-2.0-h0_0.tar.bz2 has other bytes"),
    "foreign.txt": (f"@EXPLICIT\n{FOREIGN}\n{FOREIGN}x", "torch-2-0.conda is of no channel that is mirrored here (and"),
    "excluded.txt": (f"@EXPLICIT\n{OTHER}", "excluded.txt: other-1.0-h0_0.tar.bz2 is excluded, or hidden by rules"),
}


@pytest.mark.slow
def test_keep_set_that_cannot_be_had_is_named_and_lets_nothing_go(small: Lab) -> None:
    keep(small, "app")
    hold(small, exclude=["other"])
    small.settings["delete_grace_hours"] = 0
    assert small.sync().code == 0
    held = everything(small)
    # In place of the one that was there; and a good one beside them.
    (small.folder / "keep/environment.yml").unlink()
    for name, (text, _) in WRONG.items():
        (small.folder / "keep" / name).write_text(text)
    keep(small, "unrelated", name="good.yml", channels=["defaults"])
    for _ in range(2):
        run = small.sync("--delete")
        assert run.code == 1, run.log
        for _, words in WRONG.values():
            assert [line for line in run.log.splitlines() if words in line and "nothing that is held is let go" in line]
        assert everything(small) == held | {"unrelated-1.0-h0_0.tar.bz2"}
    small.check()
    for name in WRONG:
        # One is enough.
        if name != "damaged.yml":
            (small.folder / "keep" / name).unlink()
    assert small.sync("--delete").code == 1
    assert everything(small) >= held
    (small.folder / "keep/damaged.yml").unlink()
    assert small.sync("--delete").code == 0
    assert everything(small) == {"unrelated-1.0-h0_0.tar.bz2"}


@pytest.mark.slow
def test_environment_is_solved_for_each_platform_unless_it_names_some(small: Lab) -> None:
    choice = {"keep": [str(small.folder / "keep")]}
    names = ("noarch", "linux-64", "win-64")
    small.settings |= {"repos": [], "cloud": [{"name": f"conda-forge/{arch}", "hold": choice} for arch in names]}
    keep(small, "app", "deep")
    run = small.sync()
    assert run.code == 1
    # The one for Linux is held all the same.
    assert "environment.yml for win-64: " in run.log
    assert "environment.yml for linux-64: " not in run.log
    assert small.packages(LINUX) == {"app-2.0-h0_0.tar.bz2", "deep-1.0-h0_0.tar.bz2"}
    assert small.packages(f"{graph.FORGE}/win-64") == set()
    keep(small, "app", "deep", platforms=["linux-64"])
    assert small.sync().code == 0
    settled(small)
    small.settings["cloud"][1:] = [f"conda-forge/{arch}" for arch in names[1:]]
    run = small.sync()
    assert run.code == 1
    assert "environment.yml: noarch alone has it in keep, and no platform to solve it for" in run.log


@pytest.mark.slow
def test_subdir_that_the_upstream_lacks_or_has_empty_keeps_nothing_from_being_solved(small: Lab) -> None:
    graph.write(small.tree, [Node("pkgs/r", "linux-64", "r-base", "4.4", depends=("base",))])
    empty = small.tree / "pkgs/msys2/noarch"
    empty.mkdir(parents=True)
    (empty / "repodata.json").write_text('{"info": {"subdir": "noarch"}, "packages": {}, "packages.conda": {}}')
    channel.add_formats(empty)
    hold(small)
    small.settings["repos"] = [{**small.settings["repos"][0], "name": name} for name in ("main", "r", "msys2")]
    keep(small, "r-base", channels=["defaults"])
    for arguments in ([], ["--only", "pkgs/r/*"]):
        run = small.sync(*arguments)
        assert run.code == 0, run.log
        assert everything(small) == {"r-base-4.4-h0_0.tar.bz2", "base-3.0-h0_0.tar.bz2"}
    small.upstream.requests.clear()
    run = small.sync()
    assert run.code == 0, run.log
    assert not small.upstream.asked("*.tar.bz2")
    assert not [*(small.mirror / ".lanmirror").glob("solve-*")]


@pytest.mark.slow
def test_what_a_killed_run_left_of_a_solution_goes(small: Lab) -> None:
    keep(small, "app")
    assert small.sync().code == 0
    left = small.mirror / ".lanmirror/solve-abc"
    left.mkdir()
    (left / "0.json").write_text("{}")
    assert small.sync().code == 0
    assert left.exists()
    assert small.sync(later=8 * 86400).code == 0
    assert not left.exists()


@pytest.mark.slow
def test_part_of_a_mirror_is_solved_with_the_indexes_that_are_here(small: Lab) -> None:
    keep(small, "app")
    run = small.sync("--only", LINUX)
    assert run.code == 1
    assert f"the index of {NOARCH} is not here yet" in run.log
    assert small.sync().code == 0
    small.upstream.requests.clear()
    keep(small, "app", "other")
    run = small.sync("--only", LINUX)
    assert run.code == 0, run.log
    assert "other-1.0-h0_0.tar.bz2" in small.packages(LINUX)
    assert not small.upstream.asked(f"/{NOARCH}/*")


# ---- whatever depends on whatever --------------------------------------------------------------------------------

NAMES = [f"p{number}" for number in range(7)]


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Return packages of both platforms and both channels that depend on each other, in circles too."""
    nodes = {}
    for name in NAMES:
        for version in draw(st.sets(st.sampled_from(["1.0", "1.1", "2.0"]), max_size=3)):
            where = draw(st.sampled_from([graph.FORGE, graph.FORGE, graph.MAIN]))
            arch = draw(st.sampled_from(["linux-64", "noarch"]))
            below = draw(st.lists(st.sampled_from([*NAMES, "__glibc"]), max_size=2))
            bounds = [draw(st.sampled_from(["", " >=1.1", " <2", " 1.*", " >=1.0"])) for _ in below]
            depends = tuple(map("".join, zip(below, bounds, strict=True)))
            nodes[where, arch, name, version] = Node(where, arch, name, version, depends=depends)
    return [*nodes.values()]


def indexes(nodes: Iterable[Node]) -> dict[str, bytes]:
    """Return the index of each subdir, by its path."""
    found: dict[str, dict[str, Any]] = {
        f"{where}/{arch}": {} for where in (graph.FORGE, graph.MAIN) for arch in ("noarch", "linux-64")
    }
    for node in nodes:
        found[f"{node.channel}/{node.subdir}"][node.file_name] = {
            "name": node.name, "version": node.version, "build": node.build, "build_number": 0, "md5": "0" * 32,
            "depends": [*node.depends], "subdir": node.subdir, "timestamp": 1_700_000_000_000, "size": 10,
        }  # fmt: skip
    return {path: msgspec.json.encode({"packages": records, "packages.conda": {}}) for path, records in found.items()}


def client(folder: Path, served: dict[str, bytes], specs: list[str], priority: ChannelPriority) -> set[str] | None:
    """Return what a client chooses from indexes; None where it finds no solution."""
    sources = []
    for path, data in served.items():
        file = folder / path.replace("/", "_")
        file.write_bytes(data)
        where, arch = path.rsplit("/", 1)
        sources.append(rattler.SparseRepoData(rattler.Channel(f"https://mirror.example/{where}"), arch, file))

    async def solve() -> list[rattler.RepoDataRecord]:
        # The other way in takes all indexes that stand in files for one channel.
        return await rattler.solve_with_sparse_repodata(
            [rattler.MatchSpec(spec) for spec in specs], sources, virtual_packages=machine(), channel_priority=priority
        )

    try:
        return files(asyncio.run(solve()))
    except SolverError:
        return None


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "include": st.lists(st.sampled_from([*NAMES, "p*"]), max_size=2),
        "exclude": st.lists(st.sampled_from(["p1", "p2>=2", "p3=1.0", "p*=1.1"]), max_size=2),
        "keep_latest": st.integers(1, 2),
        "newer_than": st.sampled_from(["2020-01-01", "2030-01-01"]),
        "max_size": st.sampled_from([1, 100]),
    },
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs(), st.lists(st.sampled_from([*NAMES, "p0 <2", "p1 >=1.1", "p2=1.0"]), min_size=1, max_size=3), FILTERS)
def test_no_filter_takes_a_dependency_of_a_keep_set_away(
    tmp_path: Path, nodes: list[Node], specs: list[str], filters: dict[str, Any]
) -> None:
    """Where a client finds a solution in what the upstream has and nobody excluded, it finds one in what is held."""
    folder = tmp_path / "example"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "keep").mkdir(parents=True)
    (folder / "keep/environment.yml").write_text(
        json.dumps({"channels": ["conda-forge", "defaults"], "dependencies": specs})
    )
    choice = {"keep": [str(folder / "keep")], **filters}
    config = parse_config(
        {
            "working_dir": str(folder / "mirror"), "repos": [{"name": "main", "hold": choice}],
            "arches": ["noarch", "linux-64"], "exclude": [],
            "cloud": [{"name": f"conda-forge/{arch}", "hold": choice} for arch in ("noarch", "linux-64")],
        },
        {},
    )  # fmt: skip
    store = Store(config.working_dir)
    store.create()
    upstream = indexes(nodes)
    with Memory(store.memory_file) as memory:
        survey = Survey(Mirror(config, store, memory), Options(), [])
        assert survey._keeping
        survey._all_known = True
        subdirs = {str(subdir.path): subdir for subdir in config.subdirs()}
        for path, subdir in subdirs.items():
            survey._keeping.offer(subdir, Sent("", upstream[path], Validators(), path))
        served: dict[str, bytes] = {}
        allowed: dict[str, bytes] = {}
        wrong: list[str] = []
        for path, subdir in subdirs.items():
            index = parse_index(upstream[path])
            chosen, problems = survey._chosen(subdir, index, ALL_SHOWN, {})
            assert chosen is not None
            wrong += problems
            out = survey._barred(subdir, index, ALL_SHOWN)
            assert not chosen & out
            records = json.loads(upstream[path])["packages"]
            for target, names in ((served, chosen), (allowed, records.keys() - out)):
                target[path] = json.dumps({"packages": {name: records[name] for name in names}}).encode()
    order = sorted(served, key=lambda path: not path.startswith(graph.FORGE))
    served, allowed = ({path: one[path] for path in order} for one in (served, allowed))
    possible = client(folder, allowed, specs, ChannelPriority.Strict)
    assert (possible is None) == bool(wrong)
    if possible is not None:
        for priority in (ChannelPriority.Strict, ChannelPriority.Disabled):
            found = client(folder, served, specs, priority)
            assert found is not None, (nodes, specs, filters)


def test_dependency_is_met_by_name_version_and_build() -> None:
    wrong = ["c", "a >=2", "a * py312*", "a >=1 py312*", "b ==2.0 y", "b[version='>=3']", "b >=1 >=2"]
    records = {
        f"{name}-{version}-{build}.conda": {
            "name": name, "version": version, "build": build, "build_number": 0, "md5": "0" * 32, "depends": depends,
        }
        for name, version, build, depends in (
            ("a", "1.0", "py311_0", ["b", "a <2", "a 1.* py311*", "__cuda >=12", "B=*=x"]),
            ("b", "2.0", "x", wrong),
        )
    }  # fmt: skip
    index = parse_index(msgspec.json.encode({"packages": {}, "packages.conda": records}))
    machine, other = Offers(), Offers()
    machine.add(index)
    found = [*unmet(index, [machine, other])]
    assert found == [("b-2.0-x.conda", spec) for spec in wrong]
    # What one platform has is enough for a package that is for all of them.
    other.add(parse_index(msgspec.json.encode({"packages.conda": {"c-1-0.conda": {
        "name": "c", "version": "1", "build": "0", "build_number": 0, "md5": "0" * 32}}})))  # fmt: skip
    assert [*unmet(index, [machine, other])] == found[1:]


# ---- verify ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_names_dependencies_that_nothing_served_satisfies(small: Lab) -> None:
    keep(small, "app")
    assert small.sync().code == 0
    run = small.sync("verify")
    assert run.code == 0, run.log
    assert f"{LINUX}: 0 dependencies that nothing served satisfies" in run.log
    status = json.loads((small.mirror / ".lanmirror/public/status.json").read_bytes())
    assert status["verify"]["unmet"] == 0

    # What verify takes out of an index, for it is damaged, is missed by another subdir.
    file = small.mirror / NOARCH / "base-2.0-h0_0.tar.bz2"
    file.write_bytes(file.read_bytes()[::-1])
    run = small.sync("verify")
    assert run.code == 1
    needs = f"{LINUX}/app-2.0-h0_0.tar.bz2: needs base >=2, and nothing that is served satisfies it"
    assert f"ERROR {needs}" in run.log
    assert json.loads((small.mirror / ".lanmirror/public/status.json").read_bytes())["verify"]["unmet"] == 1
    assert needs not in small.sync("verify", "--only", NOARCH).log

    # Whoever chooses without keep-sets is told, and that is all.
    assert small.sync().code == 0
    hold(small, include=["app", "base<2"])
    small.settings["repos"] = ["main"]
    (small.folder / "keep/environment.yml").write_text("channels: [conda-forge]\ndependencies: [deep]\n")
    assert small.sync().code == 0
    run = small.sync("verify")
    assert run.code == 0, run.log
    # `app` 2.0 has `base` 3.0 of the other channel; virtual packages are the machine's.
    assert "WARNING" not in run.log
    hold(small, include=["app"], exclude=["base"])
    assert small.sync().code == 0
    run = small.sync("verify")
    assert run.code == 0, run.log
    for version, needed in (("1.0", "base >=1"), ("2.0", "base >=2")):
        assert f"WARNING {LINUX}/app-{version}-h0_0.tar.bz2: needs {needed}, and nothing that is served" in run.log
    assert "__unix" not in run.log

    small.settings["on_demand"] = True
    assert small.sync().code == 0
    assert "needs" not in small.sync("verify").log


@pytest.mark.slow
def test_verify_names_some_of_many_and_counts_the_rest(small: Lab) -> None:
    folder = small.tree / graph.FORGE
    many = [
        channel.Spec(f"many{number}", "1", "0", "noarch", ("nobody",), ".tar.bz2", {f"m{number}": b""})
        for number in range(23)
    ]
    channel.publish(folder, *many)
    hold(small, keep=[], include=["many*"])
    assert small.sync().code == 0
    log = small.sync("verify").log
    assert log.count("needs nobody") == 20
    assert f"{NOARCH}: 3 more of its dependencies are served by nothing" in log
