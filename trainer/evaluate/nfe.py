"""A solver at a number of network evaluations. No torch."""

import json

from pydantic import TypeAdapter

from diffusion.config import SolverConfig, evaluations

ADAPTER: TypeAdapter[SolverConfig] = TypeAdapter(SolverConfig)


def at_most(solver: SolverConfig, nfe: int) -> SolverConfig:
    """The solver with the most steps that take no more than `nfe` network evaluations per image.

    Raises:
        ValueError: there is none.
    """
    if solver.kind == "rk45":
        raise ValueError(f"{nfe}: rk45 chooses its steps by itself; allowed: another solver")
    values = solver.model_dump(mode="json")
    for steps in range(nfe, 0, -1):
        found = ADAPTER.validate_json(json.dumps(values | {"num_steps": steps}))
        if (evaluations(found) or 0) <= nfe:
            return found
    raise ValueError(f"{nfe}; allowed: at least 1")
