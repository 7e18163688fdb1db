"""The driver of a sweep: claim its name, run what is not done, report, record.

It holds the sweep's lock and may be killed at any point: the same command runs only what is not done.
"""

import traceback

from rich.console import Console

from trainer.data.prepare import prepare
from trainer.driver.data_checks import check_data
from trainer.errors import RunFailedError, last_line
from trainer.runtime.ray_cluster import check_ray_address
from tuning import report, scores as report_scores
from tuning.mlflow_record import Recorder, recorded
from tuning.progress import Story
from tuning.space import Trial
from tuning.sweep import Sweep


def execute(sweep: Sweep) -> int:
    """The command: bring every trial to its end, show the scores; returns the exit code.

    Raises:
        InputError: found only now, such as a sweep that another process is working on; nothing has been started.
    """
    console = Console(highlight=False, soft_wrap=True)
    with sweep.locked():
        states = sweep.states()
        pending = [trial for trial, reached in zip(sweep.trials, states, strict=True) if reached != "done"]
        if pending:
            check_ray_address()
            dataset = prepare(pending[0].config.data, sweep.storage)  # the same for all
            for trial in pending:
                check_data(trial.config, dataset)
        sweep.claim()
        story = Story(sweep, console)
        story.print_line(f"sweep {sweep.name}  ({sweep.digest[:8]})  in {sweep.root}")
        story.print_line(f"{len(states) - len(pending)} of {len(states)} trials are done")
        try:
            _run(sweep, pending, story)
        except RunFailedError as error:
            story.print_line(f"failed: {error}")
            return 1
        except KeyboardInterrupt:
            story.print_line("interrupted; the same command runs what is not done")
            return 1
        except Exception as error:  # noqa: BLE001 - one line for the user, the rest in a file
            sweep.error.write_text(traceback.format_exc())
            story.print_line(f"failed: {type(error).__name__}: {last_line(error)}  (all of it: {sweep.error})")
            story.print_line("the same command runs what is not done")
            return 1
        report.show(sweep, console)
        story.print_line(f"heat map: {sweep.heatmap}" if sweep.heatmap.is_file() else "heat map: no scores to draw")
        return 1 if any(row["state"] != "done" for row in report_scores.rows(sweep)) else 0


def _run(sweep: Sweep, pending: list[Trial], story: Story) -> None:
    if not pending and recorded(sweep):
        return
    recorder = Recorder(sweep)
    recorder.start()
    try:
        if pending:
            from tuning.search import search

            try:
                search(sweep, pending, story)
            finally:
                story.close()
        report.draw(sweep, sweep.heatmap)
    except BaseException:
        recorder.give_up()
        raise
    if not recorder.finish():
        story.print_line(
            f"warning: MLflow at {sweep.trials[0].config.run.tracking_uri} did not answer: {recorder.problem}"
        )
        story.print_line("  everything is kept here; the same command records the sweep later")
