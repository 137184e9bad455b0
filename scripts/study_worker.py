"""One run of a study from data to records, in a process of its own or in this one.

Every step looks first at what is stored, so that a study that was killed continues where it was.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty

from scripts.study_plan import Run

Report = Callable[[int], None]
POLL_SECONDS = 0.2
_queue = None           # of a worker process: where it reports its progress
_traces: dict = {}      # of this process: traced products


def perform(runs: list[Run], folder: Path, data_dir: Path | None, workers: int, report: Report) -> None:
    """Do all runs, several at a time; `report` is told of every step, product and point. The first mistake ends it."""
    if workers == 1:
        for run in runs:
            perform_run(run, folder, data_dir, report)
        return
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with single_threaded_children(), ProcessPoolExecutor(workers, context, _start_worker, (queue, os.getpid())) as pool:
        futures = [pool.submit(_in_worker, run, folder, data_dir) for run in runs]
        try:
            _watch(futures, queue, report)
        except BaseException:
            processes = list((pool._processes or {}).values())      # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


def perform_run(run: Run, folder: Path, data_dir: Path | None, report: Report) -> None:
    """Train one network, then compute its spectra and surfaces; what is stored already is not computed again."""
    from analysis.pipeline import compute_curvature
    from analysis.stored_surface import compute_surface
    from analysis.subject import Subject
    from landscape.training import training_data

    data = training_data(run.config, data_dir, progress=False)
    config = run.config.resolved(data)
    store = train_run(config, data, folder / run.name, report)
    subject = Subject.open(store, data=data, device=config.device, traces=_traces)
    for epoch in run.spectrum_epochs:
        for group in run.groups:
            with topped_up(report, run.spectrum.products) as counted:
                compute_curvature(subject, epoch, group, run.spectrum, progress=counted)
    for name, epoch, settings in run.surfaces:
        with topped_up(report, settings.points ** settings.dims) as counted:
            compute_surface(subject, epoch, settings, name=name, progress=_Counter(counted))


def train_run(config, data, path: Path, report: Report):
    """Train what is not trained yet and return the run's store."""
    from checkpoints.provenance import provenance
    from landscape.training import train
    from scripts.run_folder import open_run

    store = open_run(path, config, provenance(
        data_hash=data.hash, class_counts=data.counts.tolist(), class_names=list(data.class_names), notes=list(data.notes)))
    with topped_up(report, training_cost(config, len(data.train))) as counted:
        if not store.finished:
            with store.writer():
                train(config, data=data, recorder=store.recorder(), on_step=counted)
                store.mark_finished()
    return store


def cost(run: Run, num_images: int) -> int:
    """Return how many steps, products and points a run takes: the total of its progress reports."""
    surfaces = sum(settings.points ** settings.dims for _, _, settings in run.surfaces)
    return training_cost(run.config, num_images) + len(run.spectrum_epochs) * len(run.groups) * run.spectrum.products + surfaces


def training_cost(config, num_images: int) -> int:
    """Return the steps of one training run."""
    from landscape.training import batch_sizes
    return config.epochs * len(batch_sizes(num_images, config.batch_size))


@contextmanager
def topped_up(report: Report, total: int) -> Iterator[Report]:
    """Report exactly `total` by the end, however much was counted on the way."""
    counted = 0

    def count(steps: int = 1) -> None:
        nonlocal counted
        steps = min(steps, total - counted)
        counted += steps
        report(steps)
    yield count
    report(total - counted)


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Let processes started meanwhile use one thread each: small networks gain nothing from more, and would fight for cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: "1" for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Counter:
    """What a surface counts on: anything with update()."""

    def __init__(self, count: Report):
        self.update = count


def _watch(futures: list[Future], queue, report: Report) -> None:
    while not all(future.done() for future in futures):
        _drain(queue, report)
        for future in futures:
            if future.done() and future.exception() is not None:
                raise future.exception()
        time.sleep(POLL_SECONDS)
    for future in futures:
        future.result()
    _drain(queue, report)


def _drain(queue, report: Report) -> None:
    try:
        while True:
            report(queue.get_nowait())
    except Empty:
        return


def _start_worker(queue, parent: int) -> None:
    global _queue
    _queue = queue
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: an orphan would hold the run's lock."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _in_worker(run: Run, folder: Path, data_dir: Path | None) -> None:
    perform_run(run, folder, data_dir, _queue.put)
