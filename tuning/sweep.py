"""A sweep's folder, `<run.storage>/sweeps/<name>`: the record of its trials, and why trials failed.

The state of a trial is read only from its run's folder, so that a sweep may be killed at any point.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer import files
from trainer.config.run_config import RunConfig, canonical
from trainer.driver.plan import check
from trainer.errors import InputError
from trainer.run import identity
from trainer.run.identity import State, go_on_with
from trainer.run.paths import RunPaths
from tuning.space import SweepConfig, Trial

FOLDER = "sweeps"


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep, and its folder.

    Attributes:
        root: the sweep's folder, storage/sweeps/name.
        space: the varied paths and their values, in the order of the sweep file.
        trials: the trials of the grid, in order.
        concurrent_trials: how many trials run at the same time.
    """

    root: Path
    space: dict[str, list[Any]]
    trials: tuple[Trial, ...]
    concurrent_trials: int = 1

    @classmethod
    def of(cls, config: SweepConfig, trials: list[Trial]) -> "Sweep":
        """The sweep of a sweep file and its trials; those that were started keep the configuration stored with them."""
        space = {path: list(grid.values) for path, grid in config.space.items()}
        root = Path(str(trials[0].config.run.storage)) / FOLDER / config.name
        sweep = cls(root, space, (), min(config.concurrent_trials, len(trials)))
        stored = {canonical(trial["settings"]): trial["config"] for trial in sweep.record.get("trials", [])}
        return replace(sweep, trials=tuple(_as_stored(trial, stored, sweep.storage) for trial in trials))

    @classmethod
    def load(cls, storage: Path, name: str) -> "Sweep":
        """Load a sweep that was started before.

        Raises:
            InputError: there is no sweep of this name, or its record is of another version.
        """
        names = sweep_names(storage)
        if name not in names:
            raise InputError(f"SWEEP = {name!r}: not in {storage / FOLDER}; allowed: {', '.join(names) or 'none yet'}")
        root = storage / FOLDER / name
        try:
            record = files.read_json(root / "sweep.json")
            space = {path: grid["values"] for path, grid in record["space"].items()}
            trials = [Trial(trial["settings"], _moved(trial["config"], storage)) for trial in record["trials"]]
        except (ValidationError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{root}/sweep.json: not readable by this version ({type(error).__name__})") from None
        return cls(root, space, tuple(trials))

    @property
    def storage(self) -> Path:
        """The folder that holds the trials' runs."""
        return self.root.parent.parent

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.root.name

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the results: the space, and the method of each trial."""
        methods = [trial.config.method_sha256 for trial in self.trials]
        return hashlib.sha256(canonical({"space": list(self.space.items()), "methods": methods}).encode()).hexdigest()

    @property
    def heatmap(self) -> Path:
        """File of the heat map."""
        return self.root / "heatmap.png"

    @property
    def tune(self) -> Path:
        """Folder of Ray Tune's own files, which are never read."""
        return self.root / "tune"

    @property
    def error(self) -> Path:
        """File of the traceback of an unexpected error."""
        return self.root / "error.log"

    @property
    def record(self) -> dict[str, Any]:
        """Content of `sweep.json`; empty for a new sweep, and where it cannot be read: the command makes it again."""
        return _read(self.root / "sweep.json")

    @property
    def is_damaged(self) -> bool:
        """Whether there is a `sweep.json` that cannot be read."""
        return (self.root / "sweep.json").is_file() and not self.record

    def paths(self) -> Iterator[tuple[Trial, RunPaths]]:
        """Each trial with the paths of its run."""
        return ((trial, RunPaths.of(trial.config)) for trial in self.trials)

    def states(self) -> list[State]:
        """The state of each trial.

        Raises:
            InputError: the data do not exist, or the name of the sweep or of a trial is taken.
        """
        taken = self.record.get("digest", self.digest)
        if taken != self.digest:
            raise InputError(
                f"name = {self.name!r}: taken by another sweep ({taken[:8]}, this is {self.digest[:8]}) "
                f"in {self.root}; allowed: another name"
            )
        return [check(trial.config).state for trial in self.trials]

    def locked(self) -> AbstractContextManager[None]:
        """Lock the sweep for this process.

        Raises:
            InputError: another process holds the lock.
        """
        return files.file_lock(
            self.root / "lock", f"name = {self.name!r}: another process is running this sweep", identity.lock_timeout()
        )

    def check_dataset(self, fingerprint: str) -> None:
        """Refuse to go on with other data than the sweep was begun with: its scores would not be comparable.

        Raises:
            InputError: the data changed since.
        """
        begun = self.dataset_fingerprint
        if begun not in (None, fingerprint):
            raise InputError(
                f"data.source = {self.trials[0].config.data.source!r}: not the data that sweep {self.name!r} was begun "
                f"with: their fingerprint was {begun[:16]} and is {fingerprint[:16]}; allowed: the data as they were, "
                "or another sweep for these (another name)"
            )

    @property
    def dataset_fingerprint(self) -> str | None:
        """Fingerprint of the data that the sweep was begun with, in its record or else in its first trial that says."""
        own: str | None = self.record.get("dataset_fingerprint")
        return own or next(filter(None, (identity.trained_on(paths) for _, paths in self.paths())), None)

    def register_name(self, dataset_fingerprint: str | None) -> None:
        """Register the sweep's name for its space and its data, and record the trials for the report."""
        trials = [
            {"name": trial.name, "settings": trial.settings, "config": trial.config.model_dump(mode="json")}
            for trial in self.trials
        ]
        space = {path: {"kind": "grid", "values": values} for path, values in self.space.items()}
        data = {"dataset_fingerprint": dataset_fingerprint}
        self.update_record(name=self.name, digest=self.digest, space=space, trials=trials, **data)

    def update_record(self, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        """Set values in `sweep.json`."""
        files.write_json(self.root / "sweep.json", {**self.record, **values})

    def failures(self) -> dict[str, str]:
        """By trial name, why a trial failed when it last ran."""
        return _read(self.root / "failures.json")

    def record_failure(self, name: str, reason: str | None) -> None:
        """Record why a trial failed; None clears it."""
        others = {other: text for other, text in self.failures().items() if other != name}
        files.write_json(self.root / "failures.json", {**others, **({name: reason} if reason else {})})


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or one that cannot be read."""
    try:
        values: object = files.read_json(file)
    except (OSError, ValueError):
        return {}
    return values if files.is_mapping(values) else {}


def sweep_names(storage: Path) -> list[str]:
    """Sorted names of the sweeps in a storage folder."""
    return sorted(path.parent.name for path in (storage / FOLDER).glob("*/sweep.json"))


def _as_stored(trial: Trial, stored: dict[str, Any], storage: Path) -> Trial:
    """A trial with the configuration that it was started with, where that is the same method but for defaults."""
    values = stored.get(canonical(trial.settings))
    if values is None:
        return trial
    own = _moved(values, storage)
    try:
        merged = go_on_with(own, trial.config, f"in {storage}")
    except InputError:  # another sweep of this name, which `states` refuses
        return trial
    run = merged.run.model_copy(update={"name": own.run.name})
    return Trial(trial.settings, merged.model_copy(update={"run": run}))


def _moved(values: dict[str, Any], storage: Path) -> RunConfig:
    """A recorded configuration with `storage` as its storage, which may be mounted elsewhere now."""
    return RunConfig.model_validate_json(canonical({**values, "run": {**values["run"], "storage": str(storage)}}))
