"""Where a gang fits: every bundle whole on one node, all bundles or none.

Amounts are integers (ten-thousandths), one row for a node and one column for a resource that somebody asks for.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.resources import SCALE, Kind, Shape

Amounts = NDArray[np.int64]
Sums = NDArray[
    np.float64
]  # over nodes: the memory of a thousand, in ten-thousandths of a byte, takes more than 64 bits
SEARCH_BUNDLES, SEARCH_STEPS = 32, 2000
MOST = 2**61  # of a resource of one node
ROUNDING = 1e-9  # of a sum
MANY = 2**31  # copies on a node of what asks for nothing
COMMON = ("CPU", "memory")  # what every node has


@dataclass(frozen=True)
class Node:
    """A live node.

    Attributes:
        id: Ray's id.
        total: name of a resource -> all that it has.
        held: name of a resource -> what programs hold that are not the queue's.
        labels: its labels.
        name: how people call it.
        host: the address of its machine.
    """

    id: str
    total: Mapping[str, float]
    held: Mapping[str, float] = field(default_factory=dict[str, float])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str = ""
    host: str = ""


@dataclass(frozen=True)
class Placement:
    """Where a gang goes.

    Attributes:
        gang: which of the job's alternatives.
        driver: id of the node of the command itself.
        bundles: id of the node of each bundle, in the gang's order.
    """

    gang: int
    driver: str
    bundles: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """Equal bundles of a gang: how many, what each takes, the columns that it takes of, and which nodes will do."""

    kind: Kind
    count: int
    each: Amounts
    columns: NDArray[np.intp]
    allowed: NDArray[np.bool_]
    waste: Amounts


@dataclass(frozen=True)
class Demand:
    """A gang with its driver, on the nodes of a `Cluster`.

    Attributes:
        gang: which of the job's alternatives.
        parts: its bundles, the largest first.
        driver: the command itself.
        total: the sum.
    """

    gang: int
    parts: tuple[_Part, ...]
    driver: _Part
    total: Sums


@dataclass(frozen=True)
class Places:
    """How many bundles of each part go to each node, and what that takes there."""

    counts: tuple[Amounts, ...]
    driver: int
    taken: Amounts


class Cluster:
    """Nodes and what they have.

    Attributes:
        nodes: the nodes.
        total: all that they have.
        usable: that, less what others hold.
    """

    def __init__(self, nodes: Sequence[Node], shapes: Iterable[Shape], held: Iterable[str] = ()) -> None:
        """Resources of these shapes, those in use, and those of the nodes become columns.

        A node that has other resources than COMMON, or labels that a shape chooses by, is kept for those who need it as
        long as another will do.

        Args:
            nodes: the nodes.
            shapes: those that may be asked about.
            held: names of resources that are in use.
        """
        self.nodes = list(nodes)
        kinds = {kind for shape in shapes for some in (*shape.counts, (shape.driver,)) for kind in some}
        had = {name for node in self.nodes for name in (*node.total, *node.held) if not _everywhere(name)}
        self._names = sorted({name for kind in kinds for name, _ in kind.amounts} | had | set(held))
        self._column = {name: column for column, name in enumerate(self._names)}
        self._row = {node.id: row for row, node in enumerate(self.nodes)}
        self._parts: dict[tuple[Kind, int], _Part] = {}
        self._allowed = {
            kind.labels: np.array([kind.accepts(node.labels) for node in self.nodes], bool)
            for kind in {kind.labels: kind for kind in kinds}.values()
        }
        self.total = self._matrix([node.total for node in self.nodes])
        self.usable = self.total - self._matrix([node.held for node in self.nodes])
        extras = [
            {name for name, amount in node.total.items() if amount and name not in COMMON and not _everywhere(name)}
            for node in self.nodes
        ]
        chosen = np.sum([accepts for labels, accepts in self._allowed.items() if labels], axis=0, dtype=np.int64)
        self._extras = np.array([len(each) for each in extras], np.int64) + chosen
        self._has = self.total > 0

    def amounts(self, usage: Mapping[str, Mapping[str, float]]) -> Amounts:
        """`usage`, node -> resource -> amount, as a matrix; nodes that are gone are left out."""
        result = np.zeros_like(self.total)
        for node, resources in usage.items():
            if node in self._row:
                self._fill(result[self._row[node]], resources)
        return result

    def demands(self, shape: Shape) -> list[Demand]:
        """The alternatives of a shape that the nodes could hold if they were empty."""
        found = (self._demand(index, shape) for index in range(len(shape.gangs)))
        return [demand for demand in found if self.place(demand, self.total) is not None]

    def place(self, demand: Demand, free: Amounts, busy: NDArray[np.float64] | None = None) -> Places | None:
        """Where a gang goes in what is free: on few nodes, and those that it leaves the least of; None if nowhere.

        One of unequal bundles is placed greedily, the largest first and then the other way round, and then searched for
        in SEARCH_STEPS: exact for the gangs that people write by hand.

        Args:
            demand: the gang.
            free: what is free on each node.
            busy: nodes of less come first; they are all alike without.
        """
        if is_too_much(demand, whole(np.maximum(free, 0))):
            return None
        orders = [demand.parts] if len(demand.parts) < 2 else [demand.parts, demand.parts[::-1]]
        found = (_place(demand, parts, free, busy) for parts in orders)
        return next((each for each in found if each is not None), None) or _search(demand, free)

    def busy(self, room: Amounts, free: Amounts) -> NDArray[np.float64]:
        """For each node, how much is in use now of what will be room there, when this is free now."""
        used: NDArray[np.float64] = (room - free) / np.maximum(room, 1)
        return used.max(1, initial=0.0).round(6)

    def assign(self, demand: Demand, shape: Shape, places: Places) -> Placement:
        """The node of each bundle, and of the driver; equal bundles go to one node after another."""
        rows = {
            part.kind: iter(np.repeat(np.arange(len(self.nodes)), counts).tolist())
            for part, counts in zip(demand.parts, places.counts, strict=True)
        }
        bundles = tuple(self.nodes[next(rows[kind])].id for kind in shape.gangs[demand.gang])
        return Placement(demand.gang, self.nodes[places.driver].id, bundles)

    def share(self, amounts: Sums) -> float:
        """The dominant share: the largest part that the amounts are of any resource of the cluster."""
        total = whole(self.total)
        parts = np.divide(amounts, total, out=np.zeros(len(total)), where=total > 0)
        return float(parts.max(initial=0.0))

    def most_free(self, part_kind: Kind, free: Amounts) -> tuple[str, float, str]:
        """Of the resource that a bundle lacks most: its name, the most that a node has free, and that node's name."""
        part = self._part(part_kind, 1)
        able = np.flatnonzero(part.allowed)
        rows = np.clip(free[able][:, part.columns], 0, None)
        worst = int((rows / part.each[part.columns]).max(0).argmin())
        best = int(rows[:, worst].argmax())
        node = self.nodes[int(able[best])]
        name = self._names[int(part.columns[worst])]
        return name, float(rows[best, worst]) / SCALE, node.name or node.id[:8]

    def copies(self, kind: Kind, free: Amounts) -> int:
        """How many bundles of a kind would go into what is free."""
        return int(np.minimum(_copies(self._part(kind, 1), free), MANY).sum())

    def offers(self, names: Iterable[str]) -> str:
        """What the nodes have of these resources: `2 nodes with 8 CPU, 1 GPU; 1 with 4 CPU, 0 GPU`."""
        from cluster.resources import format_amount

        texts = Counter(
            ", ".join(format_amount(name, node.total.get(name, 0.0)) for name in names) for node in self.nodes
        )
        most = texts.most_common(4)
        shown = "; ".join(f"{count} with {text}" if count > 1 else text for text, count in most)
        return (shown + ("; …" if len(texts) > len(most) else "")) or "nothing"

    def _matrix(self, rows: Sequence[Mapping[str, float]]) -> Amounts:
        result = np.zeros((len(rows), len(self._names)), np.int64)
        for values, row in zip(result, rows, strict=True):
            self._fill(values, row)
        return result

    def _fill(self, values: Amounts, row: Mapping[str, float]) -> None:
        for name, amount in row.items():
            if name in self._column:
                values[self._column[name]] = min(round(amount * SCALE), MOST)

    def _demand(self, index: int, shape: Shape) -> Demand:
        parts = [self._part(kind, count) for kind, count in shape.counts[index].items()]
        driver = self._part(shape.driver, 1)
        most = np.maximum(whole(self.total), 1)
        parts.sort(key=lambda part: -float((part.each / most).max(initial=0.0)))
        total: Sums = driver.each.astype(np.float64)
        for part in parts:
            total += part.each.astype(np.float64) * part.count
        return Demand(index, tuple(parts), driver, total)

    def _part(self, kind: Kind, count: int) -> _Part:
        found = self._parts.get((kind, count))
        if found is None:
            each = np.zeros(len(self._names), np.int64)
            for name, amount in kind.amounts:
                each[self._column[name]] = amount
            columns = np.flatnonzero(each)
            allowed = self._allowed[kind.labels]
            used = [column for column in columns if self._names[column] not in COMMON]
            waste = self._extras - self._has[:, used].sum(1) - (allowed if kind.labels else 0)
            found = self._parts[kind, count] = _Part(kind, count, each, columns, allowed, waste)
        return found


def whole(amounts: Amounts) -> Sums:
    """What amounts of all nodes are together."""
    return amounts.sum(0, dtype=np.float64)


def is_too_much(demand: Demand, free: Sums) -> bool:
    """Whether a gang is more than is free on all nodes together."""
    return bool((demand.total > free * (1 + ROUNDING)).any())


def _everywhere(name: str) -> bool:
    return name == "object_store_memory" or name.startswith(("node:", "accelerator_type:"))


def _copies(part: _Part, free: Amounts) -> Amounts:
    """How many bundles fit on each node."""
    if not len(part.columns):
        return np.where(part.allowed, MANY, 0)
    fits = (free[:, part.columns] // part.each[part.columns]).min(1)
    return np.maximum(fits, 0) * part.allowed


def _place(demand: Demand, parts: Sequence[_Part], free: Amounts, busy: NDArray[np.float64] | None) -> Places | None:
    left = free.copy()
    counts: dict[Kind, Amounts] = {}
    for part in parts:
        chosen = _choose(_copies(part, left), part.count, part.waste, busy)
        if chosen is None:
            return None
        left -= chosen[:, None] * part.each
        counts[part.kind] = chosen
    fits = _copies(demand.driver, left)
    able = np.flatnonzero(fits)
    if not len(able):
        return None
    if counts:  # beside its own bundles, so that no further node can end it, where there is the most room
        beside = np.any([chosen[able] > 0 for chosen in counts.values()], axis=0)
        driver = able[np.lexsort((-fits[able], ~beside))[0]]
    else:
        rank = np.zeros(len(able)) if busy is None else busy[able]
        driver = able[np.lexsort((fits[able], rank, demand.driver.waste[able]))[0]]
    left[driver] -= demand.driver.each
    return Places(tuple(counts[part.kind] for part in demand.parts), int(driver), free - left)


def _search(demand: Demand, free: Amounts) -> Places | None:
    """A placement that a greedy one has missed, of a gang of few bundles."""
    parts = [*demand.parts, demand.driver]
    if sum(part.count for part in parts) > SEARCH_BUNDLES or any(
        int(np.minimum(_copies(part, free), part.count).sum()) < part.count for part in parts
    ):
        return None
    bundles = [index for index, part in enumerate(parts) for _ in range(part.count)]
    left, counts, steps = free.copy(), np.zeros((len(parts), len(free)), np.int64), 0

    def rest(position: int) -> bool:
        nonlocal steps
        if position == len(bundles):
            return True
        part, tried = parts[bundles[position]], set[bytes]()
        for row in np.flatnonzero(_copies(part, left)):
            alike = left[row].tobytes() + bytes(int(each.allowed[row]) for each in parts)
            steps += 1
            if alike in tried or steps > SEARCH_STEPS:
                continue
            tried.add(alike)
            left[row] -= part.each
            counts[bundles[position], row] += 1
            if rest(position + 1):
                return True
            left[row] += part.each
            counts[bundles[position], row] -= 1
        return False

    if not rest(0):
        return None
    return Places(tuple(counts[:-1]), int(counts[-1].argmax()), free - left)


def _choose(fits: Amounts, count: int, waste: Amounts, busy: NDArray[np.float64] | None) -> Amounts | None:
    """How many of `count` equal bundles go to each node; None if they do not fit."""
    if int(fits.sum()) < count:
        return None
    chosen = np.zeros(len(fits), np.int64)
    rank = np.zeros(len(fits)) if busy is None else busy
    remaining = count
    order = np.lexsort((-fits, rank, waste))
    order = order[fits[order] > 0]
    before = count - np.cumsum(fits[order]) + fits[order]  # what remains when it is a node's turn
    filled = order[: np.searchsorted(-before, -fits.max())]  # no node could take that whole
    chosen[filled] = fits[filled]
    remaining -= int(fits[filled].sum())
    for row in order[len(filled) :]:  # pragma: no branch - they fit
        whole = np.flatnonzero((fits >= remaining) & (chosen == 0))
        if len(whole):  # the rest on the node that it leaves the least of
            best = whole[np.lexsort((fits[whole], rank[whole], waste[whole]))[0]]
            if (waste[best], rank[best]) <= (waste[row], rank[row]):
                chosen[best] = remaining
                break
        chosen[row] = fits[row]
        remaining -= int(fits[row])
    return chosen
