"""Named pieces of the flat tensors that ZeRO keeps: which elements of which parameter each one holds."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + numel) of the flattened parameter `name`, at `start` of this rank's master `flat`."""

    name: str
    offset: int
    numel: int
    flat: int
    start: int

    def of(self, flats: list[Tensor]) -> Tensor:
        """This fragment's piece of tensors aligned with the masters (masters, moments or EMA)."""
        return flats[self.flat].narrow(0, self.start, self.numel)


def fragments_of(fragments: list[Fragment], aligned: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Copies in CPU memory of this rank's fragments, keyed "kind|parameter|offset".

    Args:
        fragments: which elements of which parameter this rank's fp32 masters hold.
        aligned: kind (param, exp_avg, ema_0, ...) -> flat tensors aligned with `Masters.flats`.
    """
    return {
        f"{kind}|{fragment.name}|{fragment.offset}": fragment.of(flats).detach().to("cpu", copy=True)
        for kind, flats in aligned.items()
        for fragment in fragments
    }
