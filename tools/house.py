"""The picture of the house: docs/house.svg, drawn from what the modules import and what the folders say of themselves.

Floors are laid out here; arrows come from the code. An arrow that a longer way down implies is left out, one that
points up or sideways is drawn in red. The text is deterministic, so that a test can compare it.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
Arrows = set[tuple[str, str]]  # (who imports, what is imported), by folder

# floor by floor from the top: folder -> where its middle stands, in box widths from the left edge of the panel
HOUSE: tuple[Mapping[str, float], ...] = (
    {"cli": 1.1},
    {"federation": 0.5, "bench": 1.7},
    {"training": 1.1},
    {"evaluation": 0.5, "export": 1.7},
    {"retriever": 1.1},
    {"encoder": 0.5, "head": 1.7},
    {"collection": 1.1},
    {"common": 0.5, "privacy": 1.7},
)
FEDERATION: tuple[Mapping[str, float], ...] = (
    {"simulate": 1.75},
    {"deploy": 1.75},
    {"job": 1.1},
    {"remote": 1.1, "device": 2.3},
    {"sums": 0.5},
    {"rounds": 0.5, "wire": 1.7, "ledgers": 2.9},
)
COLOURS = ("#f3e8d2", "#efe3ee", "#dfe8f5", "#e0f0ea", "#f5e3e0", "#e6e6f4", "#e9efdc", "#eceae6")
BOX, HIGH, GAP = 236, 86, 40  # a box's width and height, and the free height between floors
LINE, RED = "#4a5568", "#c0392b"


@dataclass(frozen=True)
class Box:
    """A folder in the picture; `left`, `top` in pixels."""

    name: str
    left: float
    top: float
    floor: int
    says: str

    @property
    def middle(self) -> float:
        return self.left + BOX / 2

    def holds(self, x: float, y: float, margin: float = 5) -> bool:
        inside = self.left - margin < x < self.left + BOX + margin
        return inside and self.top - margin < y < self.top + HIGH + margin


def imports(file: Path) -> Iterator[str]:
    """The modules of fedcar that a file imports anywhere in it, types included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def arrows(package: Path, prefix: str) -> Arrows:
    """Which part of the package imports which: its folders, and modules that lie beside them."""
    found = set()
    for file in sorted(package.rglob("*.py")):
        source = file.relative_to(package).parts[0].removesuffix(".py")
        for name in imports(file):
            if name.startswith(f"{prefix}."):
                target = name.removeprefix(f"{prefix}.").split(".")[0]
                if target != source:
                    found.add((source, target))
    return found


def reduced(found: Arrows, floors: Mapping[str, int]) -> tuple[Arrows, Arrows]:
    """Those that point down, without those that a longer way down implies; and those that do not point down."""
    known = {(source, target) for source, target in found if source in floors and target in floors}
    down = {(source, target) for source, target in known if floors[source] < floors[target]}

    def reaches(source: str, target: str, without: tuple[str, str]) -> bool:
        steps = [other for first, other in down if first == source and (first, other) != without]
        return target in steps or any(reaches(step, target, without) for step in steps)

    return {(source, target) for source, target in down if not reaches(source, target, (source, target))}, known - down


def sentence(place: Path) -> str:
    """The first sentence of a folder's (or a module's) docstring, without its full stop."""
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0].rstrip(".").replace("`", "")


def boxes(package: Path, floors: tuple[Mapping[str, float], ...], left: float, top: float) -> dict[str, Box]:
    return {
        name: Box(name, left + (place - 0.5) * BOX, top + floor * (HIGH + GAP), floor, sentence(package / name))
        for floor, names in enumerate(floors)
        for name, place in names.items()
    }


def drawn(box: Box) -> list[str]:
    """The box with its name and what it says of itself."""
    lines = textwrap.wrap(box.says, 35)
    name_at = box.top + HIGH / 2 - 7.5 * len(lines) + 3
    return [
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{BOX}" height="{HIGH}" rx="7" '
        f'fill="{COLOURS[box.floor]}" stroke="#8a8f99"/>',
        f'<text x="{box.middle:g}" y="{name_at:g}" text-anchor="middle" font-size="15" font-weight="bold">'
        f"{box.name}</text>",
        *(
            f'<text x="{box.middle:g}" y="{name_at + 18 + 15 * number:g}" text-anchor="middle" fill="#39404c">'
            f"{escape(line)}</text>"
            for number, line in enumerate(lines)
        ),
    ]


def curve(start: tuple[float, float], end: tuple[float, float], share: float) -> tuple[float, float]:
    """A point of the arrow from start to end: a cubic curve that leaves and arrives upright."""
    half = (start[1] + end[1]) / 2
    points = (start, (start[0], half), (end[0], half), end)
    weights = ((1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3)
    x, y = (sum(weight * point[axis] for weight, point in zip(weights, points, strict=True)) for axis in (0, 1))
    return x, y


def joined(found: Arrows, places: Mapping[str, Box], colour: str, lane: float) -> list[str]:
    """The arrows; where the direct way would cross a box, along a lane at the right of the panel."""
    direct, around = [], []
    for source, target in sorted(found):
        first, last = places[source], places[target]
        upward = first.floor > last.floor
        start = first.middle, first.top + (0 if upward else HIGH)
        end = last.middle, last.top + (HIGH if upward else 0)
        on_the_way = [curve(start, end, step / 40) for step in range(41)]
        others = [box for name, box in places.items() if name not in (source, target)]
        crossed = any(box.holds(*point) for box in others for point in on_the_way)
        (around if crossed or first.floor == last.floor else direct).append((source, target))
    ends = {
        (name, side): sorted(
            (edge for edge in direct if edge[side] == name), key=lambda edge: places[edge[1 - side]].middle
        )
        for side in (0, 1)
        for name in places
    }

    def attached(edge: tuple[str, str], side: int) -> float:
        row = ends[edge[side], side]
        return places[edge[side]].middle + (row.index(edge) - (len(row) - 1) / 2) * BOX / 5

    paths = []
    for edge in direct:
        upward = places[edge[0]].floor > places[edge[1]].floor
        (x, y), (u, v) = ((attached(edge, side), places[edge[side]].top + HIGH * (side == upward)) for side in (0, 1))
        half = (y + v) / 2
        paths.append(f"M{x:g},{y:g} C{x:g},{half:g} {u:g},{half:g} {u:g},{v:g}")
    for number, (source, target) in enumerate(around):
        first, last = places[source], places[target]
        x, y, u, v = first.left + BOX, first.top + HIGH / 2, last.left + BOX, last.top + HIGH / 2 + 12 * number
        edge_x, turn = lane + 16 * number, 14 if v > y else -14
        paths.append(
            f"M{x:g},{y:g} H{edge_x - 14:g} Q{edge_x:g},{y:g} {edge_x:g},{y + turn:g} "
            f"V{v - turn:g} Q{edge_x:g},{v:g} {edge_x - 14:g},{v:g} H{u + 1:g}"
        )
    marker = "red" if colour == RED else "down"
    dashed = ' stroke-dasharray="6 4"' if colour == RED else ""
    style = f'fill="none" stroke="{colour}" stroke-width="1.5"{dashed} marker-end="url(#{marker})"'
    return [f'<path d="{path}" {style}/>' for path in paths]


def panel(package: Path, prefix: str, floors: tuple[Mapping[str, float], ...], left: float, top: float) -> list[str]:
    """One part of the picture: numbered floors, boxes, arrows."""
    places = boxes(package, floors, left, top)
    down, wrong = reduced(arrows(package, prefix), {name: box.floor for name, box in places.items()})
    lane = max(box.left for box in places.values()) + BOX + 26
    text = []
    for floor in range(len(floors)):
        y = top + floor * (HIGH + GAP) + HIGH / 2 + 6
        text.append(f'<text x="{left - 30:g}" y="{y:g}" font-size="19" fill="#9aa0aa">{len(floors) - floor}</text>')
    text += joined(down, places, LINE, lane) + joined(wrong, places, RED, lane + 40)
    return text + [line for box in places.values() for line in drawn(box)]


def marker(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 Z" fill="{colour}"/></marker>'
    )


def picture() -> str:
    """The whole picture as SVG."""
    package, width = ROOT / "fedcar", 1600
    house_top, inner_left, inner_top = 70, 700, 192
    height = house_top + len(HOUSE) * (HIGH + GAP) + 6
    house = boxes(package, HOUSE, 60, house_top)["federation"]
    frame_top, frame_high = inner_top - 54, len(FEDERATION) * (HIGH + GAP) + 46
    frame = (inner_left - 46, frame_top, width - inner_left + 26, frame_high)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="11.5" fill="#1d2430">',
        "<title>The folders of fedcar on eight floors; arrows say who imports whom</title>",
        f"<defs>{marker('down', LINE)}{marker('red', RED)}</defs>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="30" y="36" font-size="19" font-weight="bold">fedcar/: 12 folders on 8 floors</text>',
        '<text x="30" y="56" fill="#5b6370">an arrow: "imports"; what a longer way down implies is left out</text>',
        '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" rx="10" fill="#fbf9fc" stroke="#b9a9b8"/>'.format(*frame),
        *(
            f'<path d="M{house.left + BOX:g},{house.top + y:g} L{frame[0]:g},{edge:g}" stroke="#b9a9b8" '
            'stroke-dasharray="3 4"/>'
            for y, edge in ((6, frame_top + 10), (26, frame_top + 50))
        ),
        f'<text x="{inner_left - 30}" y="{frame_top + 32}" font-size="16" font-weight="bold">'
        "fedcar/federation/: six floors of its own</text>",
        *panel(package, "fedcar", HOUSE, 60, house_top),
        *panel(package / "federation", "fedcar.federation", FEDERATION, inner_left, inner_top),
        f'<text x="{60 + 1.1 * BOX:g}" y="{height - 12}" text-anchor="middle" fill="#5b6370">'
        "errors.py and version.py lie beside the folders: every floor may import them</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def checked_floors() -> None:
    """ValueError where a folder of the package stands on no floor: the picture would not show it."""
    for package, floors in ((ROOT / "fedcar", HOUSE), (ROOT / "fedcar" / "federation", FEDERATION)):
        there = {file.parent.name for file in package.glob("*/__init__.py")}
        drawn_there = {name for floor in floors for name in floor}
        if missing := sorted(there - drawn_there):
            raise ValueError(f"tools/house.py: {package.name}/{missing[0]} stands on no floor; give it one")
