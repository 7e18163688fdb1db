"""The claims of docs/theory.md, each measured in float64 on data with exact answers.

They are numbered as on that page. A check compares one measured number with the expected one; `python -m
diffusion.verify` prints them, and the tests run the same functions.
"""

from diffusion.verify.claims import averages, chains, distances, likelihoods, orders, sampling, screening, training
from diffusion.verify.claims.check import Check, Claim

__all__ = ["CLAIMS", "Check", "Claim"]

CLAIMS = (
    Claim(1, "with the true reverse chain, the bound is the entropy plus the prior's KL", chains.true_reverse_chain),
    Claim(2, "Sigma = beta costs c / T, Sigma = beta-tilde a constant", chains.fixed_reverse_variance),
    Claim(3, "the linear schedule of 1000 steps has the published end", chains.published_end),
    Claim(4, "DDPM's chain converges to the VP SDE as 1 / N", chains.continuous_limit),
    Claim(5, "the continuous bound depends on the schedule through its ends", likelihoods.schedule_independence),
    Claim(6, "the chain's diffusion term converges to its limit from above, as 1 / T", likelihoods.limit_of_the_chain),
    Claim(7, "lambda = g^2 bounds the SDE's KL, and not the ODE's", likelihoods.what_is_bounded),
    Claim(8, "probability-flow log-likelihood: the solver's error and the prior's", likelihoods.ode_log_likelihood),
    Claim(9, "solvers have their order of convergence", orders.solver_order),
    Claim(10, "the errors of epsilon, x_0, v and F are multiples of one another", training.error_identities),
    Claim(11, "samplers and processes that must agree do agree", sampling.equal_samplers),
    Claim(12, "the discretised decoder is a distribution", chains.decoder_mass),
    Claim(
        13, "stratified t over the global batch lowers the variance of the bound's estimate", training.stratified_steps
    ),
    Claim(14, "the Langevin corrector's stationary variance, and a step size per row", sampling.langevin_corrector),
    Claim(15, "the Frechet distance's bias falls as 1 / N, and its shards add up", distances.frechet_moments),
    Claim(16, "two EMA tracks reconstruct averages of other widths", averages.posthoc_ema),
    Claim(17, "bounds screened from a denoising curve equal those computed without it", screening.screened_bounds),
)
