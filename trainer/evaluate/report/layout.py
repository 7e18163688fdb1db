"""Where the panels of a figure go: a page without large empty areas, whatever panels there are.

Plots may be wide or narrow; a picture keeps its aspect ratio. Panels of a view follow one another in rows that fill the
page's width; the views stand one below the other or side by side. Of all such pages the best is taken: panels of about
one size, plots neither narrow nor flat, and little left empty. All lengths are inches, measured from the top left.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

WIDTHS = (3.9, 5.2, 7.4, 10.5)  # of a page
MARGIN, GAP, HEADING, CAPTION = 0.22, 0.26, 0.42, 0.44
SIZE, ASPECT = 2.85, 1.45  # of a plot: the root of its area, and width to height
NARROWEST, LOWEST, HIGHEST = 2.9, 2.2, 3.7
PICTURE = 4.4  # the highest that a picture without plots beside it is
STEP = 0.1  # between the heights that are tried
EMPTY_COST = 3.0  # for each area of SIZE x SIZE


@dataclass(frozen=True)
class Shape:
    """What a panel needs.

    Attributes:
        aspect: of a picture, width to height; None for a plot.
        tall: the height, caption included, above which a plot would only stretch.
    """

    aspect: float | None = None
    tall: float = HIGHEST


Shapes = Sequence[Shape]


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


def page(views: Sequence[Shapes]) -> Page:
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


def _candidates(views: Sequence[Shapes]) -> Iterator[Candidate]:
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


def _side_by_side(views: Sequence[Shapes], width: float) -> Iterator[Candidate]:
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


def _stretched(block: Block, view: Shapes, height: float) -> Block:
    """The block with its rows of plots made taller until it has this height, or they may not be taller."""
    tops = sorted({box.y for box in block.boxes})
    plots = [
        top for top in tops if all(s.aspect is None for s, box in zip(view, block.boxes, strict=True) if box.y == top)
    ]
    if not plots or height - block.height < 1e-9:
        return block
    more = (height - block.height) / len(plots)
    boxes = []
    for shape, box in zip(view, block.boxes, strict=True):
        above = sum(top < box.y for top in plots) * more
        tallest = max(box.height, min(box.width * 1.1, shape.tall))
        taller = min(box.height + more, tallest) if box.y in plots else box.height
        boxes.append(replace(box, y=box.y + above, height=taller))
    change = _costs(view, boxes) - _costs(view, block.boxes)
    return Block(block.width, max(box.y + box.height for box in boxes), tuple(boxes), block.cost + change)


def rows(view: Shapes, width: float) -> Block:
    """Panels in their order in rows of this width: of all ways to break them the cheapest."""
    best = [Block(width, 0.0, (), 0.0)]
    for end in range(1, len(view) + 1):
        found = []
        for begin in range(max(0, end - 5), end):
            row = _row(tuple(view[begin:end]), width)
            before = best[begin]
            top = before.height + (GAP if begin else 0.0)
            boxes = before.boxes + tuple(box.moved(0.0, top) for box in row.boxes)
            found.append(Block(width, top + row.height, boxes, before.cost + row.cost))
        best.append(min(found, key=lambda block: block.cost))
    return best[-1]


@lru_cache(maxsize=10_000)
def _row(view: tuple[Shape, ...], width: float) -> Block:
    """Panels beside one another, of the height that suits them best."""
    pictures = [shape.aspect for shape in view if shape.aspect]
    if len(pictures) == len(view):
        full = CAPTION + (width - GAP * (len(view) - 1)) / sum(pictures)
        return _row_of_height(view, width, min(full, PICTURE))
    lowest = min([LOWEST, *(shape.tall for shape in view)])
    heights = [lowest + step * STEP for step in range(round((HIGHEST - lowest) / STEP) + 1)]
    return min((_row_of_height(view, width, height) for height in heights), key=lambda block: block.cost)


def _row_of_height(view: Shapes, width: float, height: float) -> Block:
    plots = sum(shape.aspect is None for shape in view)
    pictures = [(height - CAPTION) * shape.aspect if shape.aspect else 0.0 for shape in view]
    free = width - GAP * (len(view) - 1) - sum(pictures)
    widths = [picture or max(free / plots, 0.1) for picture in pictures]
    lefts = [sum(widths[:index]) + GAP * index for index in range(len(view))]
    heights = [min(height, shape.tall) if shape.aspect is None else height for shape in view]
    boxes = tuple(Box(left, 0.0, *size) for left, *size in zip(lefts, widths, heights, strict=True))
    beside = width - lefts[-1] - widths[-1]
    empty = max(0.0, beside) * height + sum((height - box.height) * box.width for box in boxes)
    cost = _costs(view, boxes) + EMPTY_COST * empty / SIZE**2 + 1000 * max(0.0, -beside)
    return Block(width, height, boxes, cost)


def _costs(view: Shapes, boxes: Sequence[Box]) -> float:
    return sum(_cost(shape, box.width, box.height) for shape, box in zip(view, boxes, strict=True))


def _cost(shape: Shape, width: float, height: float) -> float:
    """Of a panel that is not of the usual size, or a plot that is narrow or flat; a low plot may be flat."""
    if shape.aspect is not None:
        return math.log(math.sqrt(width * (height - CAPTION)) / (SIZE * 0.95)) ** 2
    narrow = 20 * max(0.0, NARROWEST - width) + 20 * max(0.0, min(LOWEST, shape.tall) - height)
    if shape.tall < LOWEST:
        return narrow
    off = max(0.0, abs(math.log(width / height / ASPECT)) - 0.15)
    return math.log(math.sqrt(width * height) / SIZE) ** 2 + 1.2 * off**2 + narrow
