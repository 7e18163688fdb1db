"""Mutants: deliberate mistakes that an engineer could make; `python -m diffusion.verify --fault NAME` must fail."""

from diffusion.verify.mutants import averages, chains, distances, likelihoods, sampling, training
from diffusion.verify.mutants.mutation import Mutation

__all__ = ["MUTANTS", "Mutation"]

MUTANTS: dict[str, Mutation] = {
    **chains.MUTANTS,
    **likelihoods.MUTANTS,
    **sampling.MUTANTS,
    **training.MUTANTS,
    **distances.MUTANTS,
    **averages.MUTANTS,
}
