"""A world of ranks as threads: the few collectives that checkpoints use, without processes or sockets."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.fragments import Fragment
from trainer.worker.engine import MOMENTS, Masters


@dataclass
class ThreadWorld:
    """Stands in for `torch.distributed`: ranks, the barrier and the object collectives."""

    size: int
    _local: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self._barrier = threading.Barrier(self.size, timeout=20)
        self._slots: list[Any] = [None] * self.size

    def get_rank(self) -> int:
        return self._local.rank

    def get_world_size(self) -> int:
        return self.size

    def new_group(self, backend: str) -> None:
        """There is but one group."""

    def barrier(self, group: None = None) -> None:
        self._barrier.wait()

    def all_gather_object(self, out: list[Any], value: Any, group: None = None) -> None:
        self._slots[self.get_rank()] = value
        self.barrier()
        out[:] = self._slots
        self.barrier()

    def broadcast_object_list(self, values: list[Any], src: int = 0, group: None = None) -> None:
        self._slots[self.get_rank()] = values[:]
        self.barrier()
        values[:] = self._slots[src]
        self.barrier()

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Call `work(rank)` on every rank at once; re-raises the first failure."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def rank_main(rank: int) -> None:
            self._local.rank = rank
            try:
                results[rank] = work(rank)
            except threading.BrokenBarrierError:
                pass  # another rank failed
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


class FlatMasters(Masters):
    """One rank's masters as ZeRO 1 and 2 lay them out: all parameters end to end, cut into equal parts, padded."""

    def __init__(self, parameters: dict[str, Tensor], rank: int, world: int) -> None:
        whole = torch.cat([p.flatten() for p in parameters.values()])
        share = -(-len(whole) // world)
        padded = torch.cat([whole, torch.zeros(share * world - len(whole))])
        begin, end = rank * share, (rank + 1) * share
        self._whole = parameters
        self.flats = [padded[begin:end].clone()]
        self.fragments, position = [], 0
        for name, parameter in parameters.items():
            low, high = max(begin, position), min(end, position + parameter.numel())
            if low < high:
                self.fragments.append(Fragment(name, low - position, high - low, 0, low - begin))
            position += parameter.numel()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self._whole.items()}

    def moments(self, kind: str) -> list[Tensor]:
        """Stand-ins for Adam's state: another known function of the parameters for each kind."""
        return [flat * (10.0 if kind == MOMENTS[0] else -3.0) for flat in self.flats]
