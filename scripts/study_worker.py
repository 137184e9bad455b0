"""One run of a study from data to records, in a process of its own or in this one.

Every step looks first at what is stored, so that a study that was killed continues where it was. One that a signal asks
to end finishes the training step at hand and writes a resume point; products and points are stored as they are made.
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

from scripts.interruptions import Interruption
from scripts.study_plan import Run
from scripts.study_work import Part, Report, Work

POLL_SECONDS = 0.2
PATIENCE = 60.0         # seconds for a worker to finish a step
_queue = None           # of a worker process: where it reports its progress
_traces: dict = {}      # of this process: traced products


class Stopped(Exception):
    """A signal asked the study to end, and nothing done so far is lost."""


def perform(runs: list[Run], folder: Path, data_dir: Path | None, workers: int, report: Report, asked: Interruption) -> None:
    """Do all runs, several at a time; `report` is told of every unit of work. The first mistake ends it.

    Raises Stopped soon after `asked` answers True.
    """
    if workers == 1:
        for run in runs:
            perform_run(run, folder, data_dir, report, asked)
        return
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with single_threaded_children(), ProcessPoolExecutor(workers, context, _start_worker, (queue, os.getpid())) as pool:
        futures = [pool.submit(_in_worker, run, folder, data_dir) for run in runs]
        try:
            _watch(futures, queue, report, asked)
        except BaseException:
            processes = list((pool._processes or {}).values())      # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()         # which a training answers by a resume point
            for process in processes:
                process.join(PATIENCE)
            if asked():                     # of workers that ended first the pool says that it is broken
                raise Stopped from None
            raise


def perform_run(run: Run, folder: Path, data_dir: Path | None, report: Report, asked: Callable[[], bool]) -> None:
    """Train one network, then compute its spectra, surfaces and measures; what is stored already is not computed again."""
    from analysis.measures.case import Case
    from analysis.measures.catalogue import MEASURES, measured
    from analysis.pipeline import compute_curvature
    from analysis.stored_surface import compute_surface
    from analysis.subject import Subject
    from landscape.training import training_data

    data = training_data(run.config, data_dir, progress=False)
    config = run.config.resolved(data)
    work = Work(run, len(data.train), report)
    store = train_run(config, data, folder / run.name, work.training(), asked)
    subject = Subject.open(store, data=data, device=config.device, traces=_traces)
    for epoch in run.spectrum_epochs:
        for group in run.groups:
            with work.spectrum() as part:
                count = _Counter(part, asked)
                compute_curvature(subject, epoch, group, run.spectrum, progress=count.update, recalled=count.recalled)
    for name, epoch, settings in run.surfaces:
        with work.surface(settings) as part:
            compute_surface(subject, epoch, settings, name=name, progress=_Counter(part, asked))
    for name, epoch in run.measures:
        with work.measure() as part:
            case = Case(store, lambda: subject, epoch if MEASURES[name].at_checkpoint else None, run.measure)
            if measured(name, case)[1]:
                part.work()
        if asked():
            raise Stopped


def train_run(config, data, path: Path, part: Part, asked: Callable[[], bool]):
    """Train what is not trained yet and return the run's store."""
    from checkpoints.provenance import provenance
    from scripts.run_folder import open_run

    store = open_run(path, config, provenance(
        data_hash=data.hash, class_counts=data.counts.tolist(), class_names=list(data.class_names), notes=list(data.notes)))
    with part:
        if not store.finished:
            _train(config, data, store, part, asked)
    return store


def _train(config, data, store, part: Part, asked: Callable[[], bool]) -> None:
    from landscape.partial_epoch import steps_into_epoch
    from landscape.training import batch_sizes, train
    from scripts.train_log import ended_in_log, log_begin, position, row_line

    steps = len(batch_sizes(len(data.train), config.batch_size))
    with store.writer(), ended_in_log(store):
        recorder = store.recorder()
        point = recorder.resumed()
        epochs, inside = int(point["epochs_done"]) if point else 0, steps_into_epoch(point)
        log_begin(store, config, position(config, epochs, inside, steps) if point else "", data.notes)
        part.skip(epochs * steps + inside)
        result = train(config, data=data, recorder=recorder, on_step=part.work, stop=asked,
                       progress=lambda row: store.log(row_line(row, config.epochs)))
        if not result.stopped:
            store.mark_finished()
        store.log("stopped as asked" if result.stopped else "finished")
    if result.stopped:
        raise Stopped


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
    """Counts the products or points of a part, and ends the run where that is asked."""

    def __init__(self, part: Part, asked: Callable[[], bool]):
        self._part, self._asked, self._recalled = part, asked, 0

    def recalled(self, pieces: int) -> None:
        """Take so many of the next pieces for those of an earlier process: they took no work."""
        self._recalled += pieces

    def update(self, pieces: int = 1) -> None:
        old = min(self._recalled, pieces)
        self._recalled -= old
        self._part.skip(old)
        self._part.work(pieces - old)
        if self._asked():
            raise Stopped


def _watch(futures: list[Future], queue, report: Report, asked: Callable[[], bool]) -> None:
    while not all(future.done() for future in futures):
        _drain(queue, report)
        if asked():
            raise Stopped
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
            report(*queue.get_nowait())
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
    with Interruption(quiet=True) as asked:
        try:
            perform_run(run, folder, data_dir, lambda steps, worked: _queue.put((steps, worked)), asked)
        except Stopped:
            os._exit(0)     # everything is written; a pool that lost another worker would leave this one waiting
