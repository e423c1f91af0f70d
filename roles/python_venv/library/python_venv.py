#!/usr/bin/python
"""Make a venv of exact pins, with a program's own source files in it, and have `current` name it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils import lanmirror_tree as trees
from ansible.module_utils import lanmirror_way_out as out
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: python_venv
short_description: Make a venv of exact pins in a folder of its own, and have a link name it
description:
  - The file C(.complete) comes last into the folder; one without it is made anew.
  - Source files stand in C(src-HASH) in the venv, compiled, and the link C(src) names them, so that a file that was
    renamed leaves nothing behind, and all of them change at the same moment.
  - Modes are the same whatever the umask of root is; those of a venv that was made under another one are mended.
  - Of the machine's own pip settings, those by which it reaches its index count where the variables are empty. No
    other setting of the machine does.
options:
  folder:
    description: Where the venv is; its parent also has the link C(current) and the older venvs.
    type: path
    required: true
  requirements:
    description: The pins, as in a requirements file. All that they need is among them, each as a wheel.
    type: str
    required: true
  files:
    description: Text of the source files by path.
    type: dict
    default: {}
  switch:
    description:
      - Whether C(current) is to name the venv. Without, a venv that it names already is left as it is.
    type: bool
    default: true
  leftovers:
    description: Files and folders of older layouts, absolute or relative to the parent of C(folder).
    type: list
    elements: str
    default: []
  keep_named_in:
    description: A file, such as the plan of an upgrade, whose text names folders that stay.
    type: path
  role:
    description: The role that needs it, whose variables the messages name.
    type: str
    required: true
  index_url:
    description: URL of a simple index. Empty for that of the machine's pip settings, or pip's own.
    type: str
    default: ""
  http_proxy:
    description: URL of a proxy.
    type: str
    default: ""
  ca_bundle:
    description: Path of a bundle of authorities on this server.
    type: str
    default: ""
  ca_bundle_content:
    description: What that file holds on the controller, in base64; it goes beside the venv where this server has none.
    type: str
    default: ""
author:
  - lanmirror
"""

EXAMPLES = """
- name: Install a tool
  python_venv:
    folder: /opt/tool/py3.11-0123456789ab
    requirements: "tool==1.0"
    role: tool
"""

RETURN = """
stale:
  description: Folders and files beside the venv that nothing uses any longer.
  type: list
  returned: always
"""

PYTHON = "/usr/bin/python3"
SOURCES = "src"
BUNDLE = "way-out.pem"
CACHE = ".pip-cache"
VENV = re.compile(r"py\d+\.\d+-[0-9a-f]{12}")

SPEC = {
    "folder": {"type": "path", "required": True},
    "requirements": {"type": "str", "required": True},
    "files": {"type": "dict", "default": {}},
    "switch": {"type": "bool", "default": True},
    "leftovers": {"type": "list", "elements": "str", "default": []},
    "keep_named_in": {"type": "path"},
    "role": {"type": "str", "required": True},
    "index_url": {"type": "str", "default": "", "no_log": True},
    "http_proxy": {"type": "str", "default": "", "no_log": True},
    "ca_bundle": {"type": "str", "default": ""},
    "ca_bundle_content": {"type": "str", "default": ""},
}

Run = Callable[[list[str], Mapping[str, str]], None]


VenvError = trees.TreeError


def run(words: list[str], environment: Mapping[str, str]) -> None:
    """Run a command.

    Raises:
        VenvError: It failed; with the lines that say why.
    """
    done = subprocess.run(  # noqa: S603 - no shell, and no word of it comes from outside
        words, check=False, capture_output=True, text=True, env=dict(environment), cwd="/"
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise VenvError(f"{' '.join(words[:4])} failed: {' '.join(errors[-3:])[-700:]}")


@dataclass
class Making:
    """The venv as it is to be, and what had to be done."""

    folder: Path
    requirements: str
    files: Mapping[str, str]
    switch: bool = True
    dry: bool = False
    """Whether nothing is changed, only said."""
    run: Run = run
    done: list[str] = field(default_factory=list)
    """What was done, or would be, a line each."""

    @property
    def prefix(self) -> Path:
        """The folder of all venvs of this program."""
        return self.folder.parent

    @property
    def current(self) -> Path:
        """The link to the venv that runs."""
        return self.prefix / "current"

    @property
    def tree(self) -> trees.Tree:
        """The source files."""
        return trees.Tree(self.folder / SOURCES, self.files)

    def runs_already(self) -> bool:
        """Whether `current` names this venv."""
        return self.current.is_symlink() and self.current.readlink() == self.folder

    def make(self, way: out.Way, ask: Callable[[str], str]) -> None:
        """Make what is missing; `ask` returns what is wrong with the way to an index.

        Raises:
            VenvError: It cannot be made; what runs is as it was.
        """
        trees.open_parents(self.prefix, self.dry, self.done)
        if not out.is_complete(self.folder):
            self.make_venv(way, ask)
        if self.files and (self.switch or not self.runs_already()):
            self.make_tree()
        if not self.dry:
            mended = mend_modes(self.folder)
            if mended:
                self.done.append(f"{self.folder}: modes of {mended} files and folders, closed by a umask")
        if self.switch and not self.runs_already():
            self.done.append(f"{self.current} -> {self.folder.name}")
            if not self.dry:
                trees.point(self.current, self.folder)

    def make_venv(self, way: out.Way, ask: Callable[[str], str]) -> None:
        """Make the venv, with its pins."""
        pins = len(re.findall(r"(?m)^[A-Za-z0-9]", self.requirements))
        self.done.append(f"{self.folder}: a venv with {pins} packages")
        if self.dry:
            return
        environment = out.pip_environment(way, os.environ)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.run([PYTHON, "-m", "venv", str(self.folder)], environment)
        python = str(self.folder / "bin/python")
        if problem := ask(python):
            raise VenvError(problem)
        listed = self.folder / "requirements.txt"
        listed.write_text(self.requirements.rstrip() + "\n", encoding="utf-8")
        # A slow way that breaks off does not fetch the same again; gone when all is there.
        cache = self.prefix / CACHE
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--cache-dir", str(cache)]
        self.run([python, "-m", "pip", "install", *options, "--requirement", str(listed)], environment)
        shutil.rmtree(cache, ignore_errors=True)
        (self.folder / ".complete").touch()

    def make_tree(self) -> None:
        """Write the source files, compile them, and have `src` name them."""
        if self.tree.stands:
            return
        self.done.append(f"{self.tree.folder}: {len(self.files)} source files")
        if not self.dry:
            self.tree.write(self.run, str(self.folder / "bin/python"))

    def stale(self, leftovers: Iterable[str], keep_named_in: Path | None) -> list[str]:
        """Return what nothing uses any longer: not a process, not the plan of an upgrade.

        Without `switch`, all of it may be wanted yet.
        """
        if not self.switch:
            return []
        old = [path for path in children(self.prefix) if VENV.fullmatch(path.name) and path != self.folder]
        groups = [[path] for path in (*old, *self.tree.others())]
        # One layout: a program that runs from it needs all of it.
        groups.append(
            [path for path in (self.prefix / name for name in leftovers) if path.exists() or path.is_symlink()]
        )
        named = keep_named_in.read_text(encoding="utf-8") if keep_named_in and keep_named_in.exists() else ""
        used = in_use() if any(groups) else ""
        return [
            str(path)
            for group in groups
            if not any(str(path) in named or mentions(used, path) for path in group)
            for path in group
        ]


def children(folder: Path) -> list[Path]:
    """Return what is in a folder, nothing where there is none."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def in_use(proc: Path = Path("/proc")) -> str:
    """Return command lines and mapped files of all processes."""
    texts = []
    for path in (*proc.glob("[0-9]*/cmdline"), *proc.glob("[0-9]*/maps")):
        try:
            texts.append(path.read_bytes().replace(b"\0", b"\n").decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(texts)


def mentions(text: str, path: Path) -> bool:
    """Return whether a path, or something in it, stands in a text."""
    return re.search(rf"{re.escape(str(path))}(?![\w.-])", text) is not None


def mend_modes(folder: Path) -> int:
    """Let everybody read and enter what its owner may; return for how many files and folders that was new."""
    count = 0
    for root, folders, files in os.walk(folder):
        for path in (root, *(os.path.join(root, name) for name in (*folders, *files))):  # noqa: PTH118 - thousands of them
            status = os.lstat(path)
            mode = stat.S_IMODE(status.st_mode)
            wanted = mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6
            if wanted != mode and not stat.S_ISLNK(status.st_mode):
                os.chmod(path, wanted)  # noqa: PTH101 - likewise
                count += 1
    return count


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    # Of root's own, which may keep all others out of what is made here.
    os.umask(trees.UMASK)
    values = module.params
    role = values["role"]
    making = Making(
        Path(values["folder"]), values["requirements"], values["files"], values["switch"], dry=module.check_mode
    )
    try:
        authorities = out.bundle_text(values["ca_bundle"], values["ca_bundle_content"])
        bundle = values["ca_bundle"]
        if bundle and not Path(bundle).is_file():
            bundle = str(keep_bundle(making, authorities))
        way = out.way(values | {"ca_bundle": bundle}, out.machine_settings(os.environ))

        def ask(python: str) -> str:
            index = way.index_url or out.own_index(python)
            target = out.index_target(index, making.requirements, role)
            name = out.bundle_name(values["ca_bundle"], values["ca_bundle_content"])
            problem = out.find_problem(target, way, authorities, role, name) if index else None
            return problem.text if problem else ""

        making.make(way, ask)
        stale = making.stale(values["leftovers"], Path(values["keep_named_in"]) if values["keep_named_in"] else None)
    except (trees.TreeError, out.WayError, OSError) as error:
        module.fail_json(msg=str(error), invocation={})
    module.exit_json(
        changed=bool(making.done),
        stale=stale,
        diff={"prepared": "".join(f"{line}\n" for line in making.done)},
        # Not the source files, of which there are many.
        invocation={"module_args": {"folder": values["folder"], "files": sorted(values["files"])}},
    )


def keep_bundle(making: Making, text: str) -> Path:
    """Put the controller's bundle beside the venvs, for pip and for the services; return where that is."""
    path = making.prefix / BUNDLE
    if not path.exists() or path.read_text(encoding="ascii", errors="replace") != text:
        making.done.append(f"{path}: the bundle of authorities, from the machine that runs Ansible")
        if not making.dry:
            trees.open_parents(making.prefix, making.dry, making.done)
            new = path.with_name(f".{path.name}.new")
            new.write_text(text, encoding="ascii")
            new.replace(path)
    return path


if __name__ == "__main__":
    main()
