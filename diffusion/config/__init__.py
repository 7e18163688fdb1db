"""Configuration of the mathematics: process, objective, network and solver, as frozen pydantic models.

Every model forbids unknown keys and is validated strictly (a string is never read as a number). Variants are unions
discriminated on `kind`. This package does not import torch, so that a command line validates in milliseconds.
"""

from diffusion.config.base import (
    Config as Config,
    Count as Count,
    Later as Later,
    Positive as Positive,
)
from diffusion.config.network import (
    DiTConfig as DiTConfig,
    MLPConfig as MLPConfig,
    NetworkConfig as NetworkConfig,
    NetworkOptions as NetworkOptions,
    UNetConfig as UNetConfig,
)
from diffusion.config.objective import (
    AdaptiveWeighting as AdaptiveWeighting,
    EdmWeighting as EdmWeighting,
    ImportanceTime as ImportanceTime,
    LikelihoodWeighting as LikelihoodWeighting,
    MinSnrWeighting as MinSnrWeighting,
    ObjectiveConfig as ObjectiveConfig,
    P2Weighting as P2Weighting,
    SigmoidWeighting as SigmoidWeighting,
    SimpleWeighting as SimpleWeighting,
    SnrWeighting as SnrWeighting,
    StratifiedTime as StratifiedTime,
    TimeSamplingConfig as TimeSamplingConfig,
    UniformTime as UniformTime,
    VlbWeighting as VlbWeighting,
    WeightingConfig as WeightingConfig,
    check_objective as check_objective,
)
from diffusion.config.process import (
    BetaRange as BetaRange,
    ContinuousOptions as ContinuousOptions,
    CosineSchedule as CosineSchedule,
    DdpmProcess as DdpmProcess,
    EdmSchedule as EdmSchedule,
    GeometricSchedule as GeometricSchedule,
    LaplaceSchedule as LaplaceSchedule,
    LearnedSchedule as LearnedSchedule,
    LinearSchedule as LinearSchedule,
    ProcessConfig as ProcessConfig,
    ProcessOptions as ProcessOptions,
    QuadraticSchedule as QuadraticSchedule,
    ScaledLinearSchedule as ScaledLinearSchedule,
    ScheduleConfig as ScheduleConfig,
    ScheduleOptions as ScheduleOptions,
    SigmoidSchedule as SigmoidSchedule,
    SubVpProcess as SubVpProcess,
    TableSchedule as TableSchedule,
    VeProcess as VeProcess,
    VpProcess as VpProcess,
)
from diffusion.config.solver import (
    FROM_PURE_NOISE as FROM_PURE_NOISE,
    Ancestral as Ancestral,
    Autoguidance as Autoguidance,
    ClassifierFree as ClassifierFree,
    Ddim as Ddim,
    Dpmpp2M as Dpmpp2M,
    Dpmpp2MSde as Dpmpp2MSde,
    Dpmpp3M as Dpmpp3M,
    EdmStochastic as EdmStochastic,
    Euler as Euler,
    EulerMaruyama as EulerMaruyama,
    GridOptions as GridOptions,
    GuidanceConfig as GuidanceConfig,
    Heun as Heun,
    PredictorCorrector as PredictorCorrector,
    Rk45 as Rk45,
    SolverConfig as SolverConfig,
    SolverOptions as SolverOptions,
    UniPC as UniPC,
    check_guidance as check_guidance,
    check_solver as check_solver,
    evaluations as evaluations,
    starts_from_pure_noise as starts_from_pure_noise,
)
