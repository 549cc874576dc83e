"""Search of settings by Ray Tune: Optuna proposes, trials that fall behind are stopped (ASHA), the best runs again.

A trial (trial.py) learns in one process of its own and tells after every epoch how good it is by now. Optuna's database
(`optuna.db`) and `sweep.json` are kept up to date while the sweep runs; one that was interrupted goes on from them.
"""

import math
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from rayad import local
from rayad.errors import RayadError, StorageError, TrainingError
from rayad.evaluation import trials
from rayad.on_ray import metrics
from rayad.on_ray.learning import failed
from rayad.on_ray.pool import OnRay, require
from rayad.pipeline import winner
from rayad.pipeline.requests import Search
from rayad.pipeline.sweep_book import DATABASE, SweepBook, at_hand
from rayad.pipeline.sweep_task import SharedLatents, Task
from rayad.pipeline.trial import Again, learn
from rayad.pool import Workers
from rayad.process import environment, same_signal
from rayad.terminal import progress_bar

STUDY = "sweep"
"""Name of the study in Optuna's database."""
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
"""Environment in which Ray Tune writes no files and no lines of its own for every trial."""
LOSSES = 2
"""How often a trial that fails is begun anew, and the search after Ray killed trials for their memory."""


def _trial(values: dict[str, Any], task: Task, data: SharedLatents | None, device: str) -> None:
    """A trial as Ray Tune calls it; what goes wrong on purpose is its last report."""
    last = {"value": math.inf, "epoch": 0}

    def told(epoch: int, value: float) -> None:
        last.update(epoch=epoch, value=value)
        if epoch < task.epochs or not task.epochs:  # at its last epoch none is stopped
            tune.report({**last, "how": "stopped"})

    try:
        value = learn(task, data, values, None, told, device)
    except RayadError as error:
        tune.report({**last, "value": math.inf, "how": "failed", "error": str(error)})
    else:
        tune.report({**last, "value": value, "how": "whole"})


def sweep(name: str, task: Task, data: SharedLatents | None, how: Search, url: str) -> dict[str, Any]:
    """Search, fit the best with several seeds, and write `sweep.json`, `trials.csv`, `index.html` and its pictures.

    Args:
        url: folder of the sweep; one that was interrupted goes on, up to ``how.trials`` trials in all.

    Returns:
        The content of `sweep.json`.

    Raises:
        OptionError: another sweep is at the URL, or the cluster has not what the trials need.
        TrainingError: no trial came to its end, or Ray killed trials for their memory again and again.
    """
    require_trials(how)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with at_hand(url) as folder:
        book = SweepBook(name, task, data, how.trials, url, folder)
        with book.running():
            file = local.private(f"{folder}/{DATABASE}")
            database = RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 30}})
            study = _search(task, data, how, database, book)
            book.keep_seeds(_with_seeds(task, data, how, book))
            book.write_page(trials.pictures(study))
            database.engine.dispose()
    return book.summary


def require_trials(how: Search) -> None:
    """OptionError if trials would wait for ever for what the cluster does not have."""
    require(Workers(how.concurrent, how.gpu, wait_minutes=how.wait_minutes), "trial")


def _study(database: RDBStorage, task: Task, book: SweepBook) -> optuna.Study:
    """The study in the database, whether it is new or of a sweep that was interrupted."""
    study = optuna.create_study(storage=database, study_name=STUDY, direction="minimize", load_if_exists=True)
    _give_up_running(study)
    base = book.summary["base"]
    earlier = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.WAITING))
    tried = [trial.params or trial.system_attrs.get("fixed_params") for trial in earlier]
    if base not in tried and all(base[name] in dimension for name, dimension in task.space.items()):
        study.enqueue_trial(base)  # what would be used without a search is the first trial
    return study


def _give_up_running(study: optuna.Study) -> None:
    """Nobody will tell how these trials end."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


class _Searcher(OptunaSearch):
    """Optuna's proposals; each trial that ends is written down."""

    def __init__(self, book: SweepBook, step: Callable[..., None], **options: Any) -> None:
        super().__init__(metric="value", mode="min", study_name=STUDY, **options)
        self._book, self._step = book, step

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result, error)
        trial = self._ot_trials[trial_id]
        metrics.count("sweep_trials", 1, result=self._book.add(trial.number, trial.params, result))
        best = self._book.best
        if best:
            metrics.show("sweep_best", best["value"], sweep=self._book.summary["name"])
        self._step(f"best {best['value']:.4f}" if best else "")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune keeps copies to go on from, but Optuna's database has all that a sweep needs for that."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""
        open(checkpoint_path, "wb").close()


def _search(task: Task, data: SharedLatents | None, how: Search, database: RDBStorage, book: SweepBook) -> optuna.Study:
    """All trials; those that Ray killed because a node's memory was used up are replaced, until that is too often."""
    ends, losses = time.monotonic() + 60 * how.minutes, 0
    while True:
        study = _study(database, task, book)
        try:
            _run(task, data, how, database, book, ends)
        except TrainingError:
            metrics.count("faults", 1, stage="sweep")
            losses += 1
            if losses > LOSSES:
                raise
        else:
            _give_up_running(study)
            return study


def _run(
    task: Task, data: SharedLatents | None, how: Search, database: RDBStorage, book: SweepBook, ends: float
) -> None:
    """The trials that are lacking; KeyboardInterrupt if somebody stopped them."""
    lacking = how.trials - len(book.rows)
    if lacking <= 0 or time.monotonic() > ends:
        return
    sampler = optuna.samplers.TPESampler(seed=how.seed + len(book.rows), multivariate=True, constant_liar=True)
    space = {name: dimension.distribution for name, dimension in task.space.items()}
    own = tempfile.mkdtemp(prefix="rayad-tune-")
    try:
        with (
            same_signal(signal.SIGINT),
            progress_bar(lacking, "trials") as step,
            environment(**QUIET),
            warnings.catch_warnings(action="ignore"),  # the database and the book have it
            _explained(f"{book.folder}/{DATABASE}"),
        ):
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_trial, task=task, data=data, device=how.device),
                    {"cpu": 1, "gpu": how.gpu},
                ),
                tune_config=tune.TuneConfig(
                    search_alg=_Searcher(book, step, space=space, storage=database, sampler=sampler),
                    scheduler=_scheduler(task, how),
                    num_samples=lacking,
                    max_concurrent_trials=how.concurrent,
                    time_budget_s=ends - time.monotonic(),
                ),
                run_config=tune.RunConfig(
                    name=STUDY, storage_path=own, verbose=0, failure_config=tune.FailureConfig(max_failures=LOSSES)
                ),
            ).fit()
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if len(book.rows) < how.trials and time.monotonic() < ends - 1:
        raise KeyboardInterrupt


@contextmanager
def _explained(database: str) -> Iterator[None]:
    """StorageError where Optuna cannot write its database, TrainingError where Ray killed a trial for its memory.

    Ray Tune tells of its callers' errors in words, and does not expect the other.
    """
    try:
        yield
    except (TuneError, StorageInternalError, RuntimeError) as error:
        causes = list(_causes(error))
        full = next((cause for cause in causes if isinstance(cause, StorageInternalError)), None)
        if full is not None:
            why = str(getattr(full.__cause__, "orig", full.__cause__))
            why = os.strerror(ENOSPC) if "is full" in why else why
            raise StorageError(f"cannot write {database}: {why}") from error
        if any(isinstance(cause, OutOfMemoryError) for cause in causes):
            raise failed(error) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _scheduler(task: Task, how: Search) -> TrialScheduler:
    """Stops the worse two thirds of the trials at 1, 3, 9, ... times the grace (Li et al., "ASHA", MLSys 2020)."""
    if not how.grace or how.grace >= task.epochs:  # 0 of trials whose end alone has a value
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode="min",
        max_t=task.epochs + 1,  # a trial that comes to its end is not stopped
        grace_period=how.grace,
        reduction_factor=3,
    )


def _with_seeds(task: Task, data: SharedLatents | None, how: Search, book: SweepBook) -> list[tuple[float | None, str]]:
    """What the best settings and then those without a search end with, learned again with several seeds."""
    settings = winner.apart(winner.candidates(book.best_settings(), book.summary["base"]))
    jobs = [(values, seed) for values in settings for seed in range(how.seeds)]
    pool = OnRay(Workers(gpu=how.gpu))
    ended = list(pool.map(Again, jobs, "seeds", (task, data, pool.device)))
    return ended if len(settings) > 1 else 2 * ended
