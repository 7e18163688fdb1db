"""The likelihoods of a model: the discrete and the continuous variational bound, and the ODE's density."""
