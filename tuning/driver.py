"""The driver of a sweep: register its name, run the trials that are not done, report the scores, record them in MLflow.

It holds the sweep's lock. If it is killed, the same command runs the trials that are not done.
"""

import traceback

from diffusion.private_folder import write_private
from diffusion.terminal import PlainConsole
from trainer.data.prepare import prepare
from trainer.driver.data_checks import check_data
from trainer.errors import RunFailedError, last_line
from trainer.runtime.ray_cluster import check_ray_address
from tuning import report, scores as report_scores
from tuning.mlflow_record import Recorder, is_recorded
from tuning.progress import SweepProgress
from tuning.space import Trial
from tuning.sweep import Sweep


def execute(sweep: Sweep, from_scratch: bool = False) -> int:
    """Run every trial to its end, and show the scores; returns the exit code.

    Args:
        sweep: the sweep.
        from_scratch: whether trials of which there are damaged checkpoints only begin at step 0.

    Raises:
        InputError: bad input that only shows now, such as a sweep that another process is running; nothing was started.
    """
    console = PlainConsole(soft_wrap=True)
    with sweep.locked():
        states = sweep.states()
        pending = [trial for trial, reached in zip(sweep.trials, states, strict=True) if reached != "done"]
        fingerprint = sweep.dataset_fingerprint
        if pending:
            check_ray_address()
            dataset = prepare(pending[0].config.data, sweep.storage)  # the same for all trials
            fingerprint = dataset.info.fingerprint
            sweep.check_dataset(fingerprint)
            for trial in pending:
                check_data(trial.config, dataset)
        damaged = sweep.is_damaged
        sweep.register_name(fingerprint)
        progress = SweepProgress(sweep, console)
        progress.print_line(f"sweep {sweep.name}  ({sweep.digest[:8]})  in {sweep.root}")
        progress.print_line(f"{len(states) - len(pending)} of {len(states)} trials are done")
        if damaged:
            progress.print_line(f"warning: {sweep.root}/sweep.json could not be read, and is made again")
        try:
            _run(sweep, pending, progress, from_scratch)
        except RunFailedError as error:
            progress.print_line(f"failed: {error}")
            return 1
        except KeyboardInterrupt:
            progress.print_line("interrupted; run the same command again to run the trials that are not done")
            return 1
        except Exception as error:  # noqa: BLE001 - one line for the user, the traceback in a file
            write_private(sweep.error, traceback.format_exc())
            progress.print_line(f"failed: {type(error).__name__}: {last_line(error)}  (traceback: {sweep.error})")
            progress.print_line("run the same command again to run the trials that are not done")
            return 1
        report.show(sweep, console)
        progress.print_line(f"heat map: {sweep.heatmap}" if sweep.heatmap.is_file() else "heat map: no scores to draw")
        return 1 if any(row["state"] != "done" for row in report_scores.rows(sweep)) else 0


def _run(sweep: Sweep, pending: list[Trial], progress: SweepProgress, from_scratch: bool) -> None:
    if not pending and is_recorded(sweep):
        return
    recorder = Recorder(sweep)
    recorder.start()
    try:
        if pending:
            from tuning.search import search

            try:
                search(sweep, pending, progress, from_scratch)
            finally:
                progress.close()
        report.draw(sweep, sweep.heatmap)
    except BaseException:
        recorder.give_up()
        raise
    if not recorder.finish():
        progress.print_line(
            f"warning: MLflow at {sweep.trials[0].config.run.tracking_uri} did not respond: {recorder.problem}"
        )
        progress.print_line("  the results are kept locally; run the same command again to record the sweep")
