"""Faults that a tired engineer could write, applied on purpose: `python -m diffusion.verify --fault NAME` must fail."""

from diffusion.verify.faults import averages, chains, distances, likelihoods, sampling, training
from diffusion.verify.faults.fault import Fault

__all__ = ["FAULTS", "Fault"]

FAULTS: dict[str, Fault] = {
    **chains.FAULTS,
    **likelihoods.FAULTS,
    **sampling.FAULTS,
    **training.FAULTS,
    **distances.FAULTS,
    **averages.FAULTS,
}
