"""Draw the picture of the whole, in each language of the README: `python docs/whole.py`."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "pictures"
FILES = {"en": FOLDER / "whole.svg", "zh-CN": FOLDER / "whole.zh-CN.svg"}

WIDTH, HEIGHT = 960, 372

# A background of its own: the picture is readable on a page whose colours are not those of the reader's system.
STYLE = """\
  .page { fill: #ffffff; stroke: #d0d7de }
  .place { fill: #f6f8fa; stroke: #8c959f; stroke-dasharray: 5 4 }
  .part { fill: #ffffff; stroke: #57606a }
  .ours { fill: #ddf4ff; stroke: #0969da }
  text { fill: #1f2328; font: 14px system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; text-anchor: middle }
  .title { font-weight: 600 }
  .small { font-size: 12px; fill: #57606a }
  .way { fill: none; stroke: #57606a; stroke-width: 1.6; marker-end: url(#tip) }
  .ansible { stroke: #bf5f00; stroke-dasharray: 6 4; marker-end: url(#tip-of-ansible) }
  .tip { fill: #57606a }
  .tip-of-ansible { fill: #bf5f00 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d }
    .place { fill: #161b22; stroke: #6e7681 }
    .part { fill: #0d1117; stroke: #8b949e }
    .ours { fill: #0b2545; stroke: #58a6ff }
    text { fill: #e6edf3 }
    .small { fill: #b1bac4 }
    .way { stroke: #9198a1 }
    .ansible { stroke: #f0883e }
    .tip { fill: #9198a1 }
    .tip-of-ansible { fill: #f0883e }
  }"""


@dataclass(frozen=True)
class Box:
    """A rectangle with a title, a second line, and the class that gives it its colours."""

    name: str
    x: int
    y: int
    width: int
    height: int
    kind: str = "part"


PLACES = (
    Box("outside", 20, 20, 190, 270, "place"),
    Box("server", 270, 20, 400, 270, "place"),
    Box("lan", 730, 20, 210, 270, "place"),
)
PARTS = (
    Box("pypi", 38, 70, 154, 60),
    Box("conda", 38, 190, 154, 60),
    Box("devpi", 288, 70, 164, 60, "ours"),
    Box("engine", 288, 190, 164, 60, "ours"),
    Box("nginx", 524, 70, 128, 180, "ours"),
    Box("pip", 748, 58, 174, 52),
    Box("tools", 748, 134, 174, 52),
    Box("browser", 748, 210, 174, 52),
    Box("controller", 270, 314, 400, 44),
)
WAYS = (
    "M192 100 H284",
    "M192 220 H284",
    "M452 100 H520",
    "M452 220 H520",
    "M652 100 L744 84",
    "M652 160 H744",
    "M652 220 L744 236",
)
WAYS_OF_ANSIBLE = ("M470 314 V294", "M670 336 H835 V294")

# Title and second line of each box.
WORDS: dict[str, dict[str, tuple[str, str]]] = {
    "en": {
        "": ("lanmirror: packages come in once, and go out to the whole network", ""),
        "outside": ("outside", ""),
        "server": ("one server", ""),
        "lan": ("the lab's network", ""),
        "pypi": ("PyPI", "or a mirror of it"),
        "conda": ("Conda channels", "or a mirror of them"),
        "devpi": ("devpi", "fetches once, keeps"),
        "engine": ("sync engine", "cron: fetches, verifies"),
        "nginx": ("Nginx", "one port"),
        "pip": ("pip, uv", ""),
        "tools": ("conda, mamba, pixi", ""),
        "browser": ("a browser", "portal, /health"),
        "controller": ("ansible-playbook site.yml", "from your machine, over SSH"),
    },
    "zh-CN": {
        "": ("lanmirror：软件包只从外网取一次，供整个局域网使用", ""),
        "outside": ("外网", ""),
        "server": ("一台服务器", ""),
        "lan": ("实验室的局域网", ""),
        "pypi": ("PyPI", "或它的镜像站"),
        "conda": ("Conda 频道", "或镜像站"),
        "devpi": ("devpi", "按需获取并缓存"),
        "engine": ("同步引擎", "cron：下载并校验"),
        "nginx": ("Nginx", "一个端口"),
        "pip": ("pip、uv", ""),
        "tools": ("conda、mamba、pixi", ""),
        "browser": ("浏览器", "首页、/health"),
        "controller": ("ansible-playbook site.yml", "在你自己的机器上运行，经由 SSH"),
    },
}


def box(shape: Box, title: str, second: str) -> list[str]:
    """Return the lines of one box: its place's title stands at its top, a part's in its middle."""
    centre = shape.x + shape.width // 2
    middle = shape.y + (27 if shape.kind == "place" else shape.height // 2 + (5 if not second else -3))
    place = f'x="{shape.x}" y="{shape.y}" width="{shape.width}" height="{shape.height}"'
    lines = [
        f'<rect class="{shape.kind}" {place} rx="8"/>',
        f'<text class="title" x="{centre}" y="{middle}">{escape(title)}</text>',
    ]
    if second:
        lines.append(f'<text class="small" x="{centre}" y="{middle + 18}">{escape(second)}</text>')
    return lines


def tip(name: str) -> str:
    """Return the head of an arrow."""
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        f'orient="auto-start-reverse"><path class="{name}" d="M0 0 L10 5 L0 10 z"/></marker>'
    )


def picture(language: str) -> str:
    """Return the picture as SVG, with the words of `language`."""
    words = WORDS[language]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xml:lang="{language}">',
        "<!-- Made by `make docs`. -->",
        f"<title>{escape(words[''][0])}</title>",
        f"<style>\n{STYLE}\n</style>",
        f"<defs>{tip('tip')}{tip('tip-of-ansible')}</defs>",
        f'<rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10"/>',
    ]
    for shape in (*PLACES, *PARTS):
        lines += box(shape, *words[shape.name])
    lines += [f'<path class="way" d="{way}"/>' for way in WAYS]
    lines += [f'<path class="way ansible" d="{way}"/>' for way in WAYS_OF_ANSIBLE]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    for its_language, file in FILES.items():
        file.write_text(picture(its_language))
