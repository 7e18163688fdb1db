"""The parts of a training step by name, as they appear in traces; they cost a microsecond where nobody profiles."""

WAIT = "waiting for data"
FORWARD = "forward"
BACKWARD = "backward"
REDUCTION = "reduction"
OPTIMIZER = "optimizer"
EMA = "EMA"
METRICS = "metrics"
CHECKPOINT = "checkpoint"
DRAWS = "draws"
IMAGES = "images"

STEP = (WAIT, FORWARD, BACKWARD, REDUCTION, OPTIMIZER, EMA, METRICS, CHECKPOINT)
"""Those of the thread that trains, in the order of a step."""

LOADER = (DRAWS, IMAGES)
"""Those of the thread that makes the next batch meanwhile."""
