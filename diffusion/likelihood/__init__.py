"""What probability a model gives to data: the discrete bound, the continuous one, and the ODE's density."""
