"""Ray Train + DeepSpeed training of epsilon_theta and s_theta: data, checkpoints, evaluation, MLflow.

Importing `trainer` or `trainer.config` loads neither torch nor Ray, so that the command line answers at once.
"""
