"""What README, CONTRIBUTING and the pages of docs/ keep to: short, in step, and true to the tree."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from lanmirror_sync import __version__

from docs import generate, whole
from tests.roles.render import ROLES, ROOT, defaults

READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the blocks of code of a page, without the comments in them, which are translated."""
    found = [text for language, text in BLOCK.findall(path.read_text()) if not languages or language in languages]
    return [re.sub(r"(?m)\s+# .*$", "", text) for text in found]


def code(path: Path) -> list[str]:
    """Return what a page sets as code in its text."""
    return re.findall(r"`([^`]+)`", BLOCK.sub("", path.read_text()))


# ---- README ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_readme_is_read_in_two_minutes(readme: Path) -> None:
    assert len(readme.read_text().splitlines()) <= 200


def test_readme_says_the_same_in_both_languages() -> None:
    english, chinese = READMES
    assert blocks(english) == blocks(chinese)
    assert sorted(code(english)) == sorted(code(chinese))
    for pattern in (r"(?m)^(#+) ", r"(?m)^(- |\|)", r"\]\((docs/[\w-]+\.md|https?://[^)]+)\)"):
        assert re.findall(pattern, english.read_text()) == re.findall(pattern, chinese.read_text()), pattern


def test_readme_has_fifteen_words() -> None:
    glossary = READMES[0].read_text().partition("## Words\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"(?m)^\| (?!word|-)", glossary)) == 15


def test_readme_shows_the_tree_as_it_is() -> None:
    tree = next(block for block in blocks(READMES[0], "text") if block.startswith("site.yml"))
    named = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    assert {entry for entry in named if not (ROOT / entry).exists()} == set()
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    assert there - named <= {"inventory"}


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_readme_links_every_page(readme: Path) -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", readme.read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == linked


# ---- links and commands ---------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", BLOCK.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))


def variables() -> set[str]:
    """Return the variables that an administrator may set: those of roles, of the inventory, and of plays."""
    folders = ("inventory.example", "playbooks")
    texts = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.yml")]
    shared = {word for text in texts for word in re.findall(r"\blanmirror_\w+", text)}
    return shared.union(*(defaults(role) for role in ROLES))


def tags() -> set[str]:
    """Return the tags of the playbooks."""
    found: set[str] = set()

    def walk(part: object) -> Iterator[str]:
        if isinstance(part, dict):
            listed = part.get("tags", [])
            yield from [listed] if isinstance(listed, str) else listed
            for value in part.values():
                yield from walk(value)
        elif isinstance(part, list):
            for value in part:
                yield from walk(value)

    for path in (ROOT / "playbooks").rglob("*.yml"):
        found.update(walk(yaml.safe_load(path.read_text())))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_what_there_is(page: Path) -> None:
    commands = [*blocks(page, "sh", "console", ""), *code(page)]
    for command in commands:
        assert set(re.findall(r"(?:^|\s)make ([a-z-]+)", command)) <= targets(), command
        for playbook in re.findall(r"\b((?:playbooks/\w+|site)\.yml)\b", command):
            assert (ROOT / playbook).exists(), command
        for script in re.findall(r"(?:^|\s)((?:bench|molecule)/\w+)(?=\s|$)", command):
            assert (ROOT / script).exists(), command
        if "ansible-playbook" in command:
            assert set(re.findall(r"(?:-e|--extra-vars)[ =](\w+)=", command)) <= variables(), command
            assert set(re.findall(r"--tags (\w+)", command)) <= tags(), command


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_readme_names_variables_that_the_example_sets(readme: Path) -> None:
    table = "\n".join(line for line in readme.read_text().splitlines() if line.startswith("|"))
    for path in re.findall(r"`(group_vars/\w+\.yml)`", table):
        assert (ROOT / "inventory.example" / path).exists(), path
    files = sorted((ROOT / "inventory.example/group_vars").glob("*.yml"))
    example = {key for file in files for key in yaml.safe_load(file.read_text())}
    prefixes = tuple(f"{prefix}_" for prefix in ("lanmirror", *ROLES))
    named = {word for word in re.findall(r"`(\w+)`", table) if word.startswith(prefixes) and word != "conda_mirror"}
    assert named
    assert named <= example


# ---- pictures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("language", "path"), whole.FILES.items())
def test_picture_of_the_whole_is_as_it_is_drawn(language: str, path: Path) -> None:
    assert path.read_text() == whole.picture(language), "run `make docs`"
    assert set(whole.WORDS[language]) == {"", *(box.name for box in (*whole.PLACES, *whole.PARTS))}


def colours(style: str) -> dict[str, dict[str, str]]:
    """Return the colours of each class of a style sheet."""
    rules = re.findall(r"([\w.-]+) \{ ([^}]*) \}", style)
    return {selector: dict(re.findall(r"(fill|stroke): (#\w+)", rule)) for selector, rule in rules}


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("path", whole.FILES.values(), ids=name)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_of_the_whole_is_readable(path: Path, scheme: str) -> None:
    root = ElementTree.fromstring(path.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    chosen = colours(light)
    if scheme == "dark":
        for selector, rule in colours(dark).items():
            chosen[selector] |= rule
    for ink in ("text", ".small"):
        for paper in (".page", ".place", ".part", ".ours"):
            bright, dim = sorted((luminance(chosen[ink]["fill"]), luminance(chosen[paper]["fill"])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{ink} on {paper}"


def test_picture_of_the_portal_is_small() -> None:
    picture = (ROOT / "docs/pictures/portal.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width >= 800
    assert height >= 600
    assert len(picture) < 150_000


# ---- generated pages ------------------------------------------------------------------------------------------


def test_page_of_variables_is_up_to_date() -> None:
    assert generate.PAGE.read_text() == generate.page(), "run `make docs`"


@pytest.mark.parametrize(("part", "pages"), generate.SHOWN.items())
def test_pages_have_the_place_for_what_make_show_prints(part: str, pages: tuple[str, ...]) -> None:
    script = (ROOT / "molecule/show").read_text()
    listed = re.search(rf"(?m)^{part}=\(\n((?:  \w+:/\S+\n)+)\)$", script)
    assert listed
    for page in pages:
        place = generate.SHOWN_PLACE.findall((ROOT / page).read_text())
        assert len(place) == 1
        shown = re.findall(r"(?m)^==== (\w+): (/\S+)$", place[0])
        assert [f"{machine}:{path}" for machine, path in shown] == listed[1].split(), "run `make pictures`"


# ---- releases -------------------------------------------------------------------------------------------------


def test_newest_release_of_the_changelog_is_the_version() -> None:
    headings = re.findall(r"(?m)^## (.*)$", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)", headings[1])
