"""Where the panels of a figure go: a page without large empty areas, whatever panels there are.

Plots may be wide or narrow; a picture keeps its aspect ratio. Panels of a view follow one another in rows that fill the
page's width; the views stand one below the other or side by side. Of all such pages the best is taken: panels of about
one size, plots neither narrow nor flat, and little left empty. All lengths are inches, measured from the top left.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

WIDTHS = (5.2, 7.4, 10.5)  # of a page
MARGIN, GAP, HEADING, CAPTION = 0.22, 0.26, 0.42, 0.44
SIZE, ASPECT = 2.85, 1.45  # of a plot: the root of its area, and width to height
NARROWEST, LOWEST, HIGHEST = 2.9, 2.2, 3.7
STEP = 0.1  # between the heights that are tried
EMPTY_COST = 3.0  # for each area of SIZE x SIZE

Aspects = Sequence[float | None]
"""Of each panel the width to height of its picture, None for a plot."""


@dataclass(frozen=True)
class Box:
    """A rectangle on the page, y downwards."""

    x: float
    y: float
    width: float
    height: float

    def moved(self, x: float, y: float) -> "Box":
        """The same, elsewhere."""
        return replace(self, x=self.x + x, y=self.y + y)


@dataclass(frozen=True)
class Block:
    """Panels in rows that begin at the origin."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    cost: float


@dataclass(frozen=True)
class Page:
    """A whole figure: its size, the line of each view's heading, and its panels, view by view."""

    width: float
    height: float
    headings: tuple[Box | None, ...]
    boxes: tuple[tuple[Box, ...], ...]

    def below(self, header: float) -> "Page":
        """The same below so high a title."""
        headings = tuple(box and box.moved(0.0, header) for box in self.headings)
        boxes = tuple(tuple(box.moved(0.0, header) for box in view) for view in self.boxes)
        return Page(self.width, self.height + header, headings, boxes)


def page(views: Sequence[Aspects]) -> Page:
    """The best page for these views, without a title; a view without panels has no heading."""
    shown = [index for index, view in enumerate(views) if view]
    if not shown:
        return Page(WIDTHS[0], MARGIN, (None,) * len(views), ((),) * len(views))
    _, width, height, places = min(_candidates([views[index] for index in shown]), key=lambda found: found[0])
    headings: list[Box | None] = [None] * len(views)
    boxes: list[tuple[Box, ...]] = [()] * len(views)
    for index, (x, y, block) in zip(shown, places, strict=True):
        headings[index] = Box(MARGIN + x, y, block.width, HEADING)
        boxes[index] = tuple(box.moved(MARGIN + x, y + HEADING) for box in block.boxes)
    return Page(width, height + MARGIN, tuple(headings), tuple(boxes))


Candidate = tuple[float, float, float, list[tuple[float, float, Block]]]


def _candidates(views: Sequence[Aspects]) -> Iterator[Candidate]:
    """Pages as cost, width, height, and of each view where it is and its panels."""
    for width in WIDTHS:
        inner = width - 2 * MARGIN
        blocks = [rows(view, inner) for view in views]
        tops = [sum(HEADING + GAP + block.height for block in blocks[:index]) for index in range(len(blocks))]
        height = tops[-1] + HEADING + blocks[-1].height
        places = [(0.0, top, block) for top, block in zip(tops, blocks, strict=True)]
        yield _page_cost(width, height, blocks, 0.0), width, height, places
        if len(views) == 2:
            yield from _side_by_side(views, width)


def _side_by_side(views: Sequence[Aspects], width: float) -> Iterator[Candidate]:
    inner = width - 2 * MARGIN - 1.5 * GAP
    for percent in range(26, 75, 4):
        left = inner * percent / 100
        blocks = [rows(views[0], left), rows(views[1], inner - left)]
        height = max(block.height for block in blocks)
        blocks = [_stretched(block, view, height) for block, view in zip(blocks, views, strict=True)]
        empty = sum((height - block.height) * block.width for block in blocks)
        places = [(0.0, 0.0, blocks[0]), (left + 1.5 * GAP, 0.0, blocks[1])]
        yield _page_cost(width, height + HEADING, blocks, empty), width, height + HEADING, places


def _page_cost(width: float, height: float, blocks: Sequence[Block], empty: float) -> float:
    long = max(0.0, math.log(height / width / 1.25)) + max(0.0, math.log(width / height / 2.6))
    return sum(block.cost for block in blocks) + EMPTY_COST * empty / SIZE**2 + 4 * long**2 + long


def _stretched(block: Block, view: Aspects, height: float) -> Block:
    """The block with its rows of plots made taller until it has this height, or they may not be taller."""
    tops = sorted({box.y for box in block.boxes})
    plots = [top for top in tops if all(a is None for a, box in zip(view, block.boxes, strict=True) if box.y == top)]
    if not plots or height - block.height < 1e-9:
        return block
    more = (height - block.height) / len(plots)
    boxes = []
    for box in block.boxes:
        above = sum(top < box.y for top in plots) * more
        taller = min(more, max(0.0, box.width * 1.25 - box.height)) if box.y in plots else 0.0
        boxes.append(replace(box, y=box.y + above, height=box.height + taller))
    change = _costs(view, boxes) - _costs(view, block.boxes)
    end = max(box.y + box.height for box in boxes)
    return Block(block.width, end, tuple(boxes), block.cost + change)


def rows(view: Aspects, width: float) -> Block:
    """Panels in their order in rows of this width: of all ways to break them the cheapest."""
    best = [Block(width, 0.0, (), 0.0)]
    for end in range(1, len(view) + 1):
        found = []
        for begin in range(max(0, end - 5), end):
            row = _row(view[begin:end], width)
            before = best[begin]
            top = before.height + (GAP if begin else 0.0)
            boxes = before.boxes + tuple(box.moved(0.0, top) for box in row.boxes)
            found.append(Block(width, top + row.height, boxes, before.cost + row.cost))
        best.append(min(found, key=lambda block: block.cost))
    return best[-1]


def _row(view: Aspects, width: float) -> Block:
    """Panels beside one another, of the height that suits them best."""
    free = width - GAP * (len(view) - 1)
    heights = [LOWEST + step * STEP for step in range(round((HIGHEST - LOWEST) / STEP) + 1)]
    if None not in view:
        full = CAPTION + free / sum(aspect for aspect in view if aspect)
        heights = [min(full, HIGHEST)]
    return min((_row_of_height(view, width, height) for height in heights), key=lambda block: block.cost)


def _row_of_height(view: Aspects, width: float, height: float) -> Block:
    plots = sum(aspect is None for aspect in view)
    free = width - GAP * (len(view) - 1) - sum((height - CAPTION) * aspect for aspect in view if aspect)
    widths = [max(free / plots, 0.1) if aspect is None else (height - CAPTION) * aspect for aspect in view]
    lefts = [sum(widths[:index]) + GAP * index for index in range(len(view))]
    boxes = tuple(Box(left, 0.0, each, height) for left, each in zip(lefts, widths, strict=True))
    beside = width - lefts[-1] - widths[-1]
    empty = EMPTY_COST * max(0.0, beside) * height / SIZE**2
    return Block(width, height, boxes, _costs(view, boxes) + empty + 1000 * max(0.0, -beside))


def _costs(view: Aspects, boxes: Sequence[Box]) -> float:
    return sum(_cost(aspect, box.width, box.height) for aspect, box in zip(view, boxes, strict=True))


def _cost(aspect: float | None, width: float, height: float) -> float:
    """Of a panel that is not of the usual size, or a plot that is narrow or flat."""
    if aspect is not None:
        return math.log(math.sqrt(width * (height - CAPTION)) / (SIZE * 0.95)) ** 2
    shape = math.log(width / height / ASPECT)
    off = max(0.0, abs(shape) - 0.15)
    narrow = max(0.0, NARROWEST - width)
    return math.log(math.sqrt(width * height) / SIZE) ** 2 + 1.2 * off**2 + 20 * narrow
