"""The process that does the cases: it loads the model once, and its death costs no more than the case it died of."""

import gc
import importlib
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medseg.errors import ConfigError
from medseg.inference.cases import Case
from medseg.inference.faults import Failure, failure_of
from medseg.inference.messages import Said, Setup, Stage
from medseg.memory import available_mb

if TYPE_CHECKING:
    from medseg.inference.stages import Job, Stages

logger = logging.getLogger(__name__)

AT_ONCE = 4  # cases inside: one in each of the three stages, and the next one read
MEMORY_SHARE = 0.8  # of what is free once the model is loaded; the rest is for what estimates miss
STOP_S = 2.5  # Ctrl-C, or a lost GPU: a mask that is being written may be finished in this time


class WorkerDiedError(RuntimeError):
    """The worker has ended, or does not answer, and its cases are not done."""


class Worker(Protocol):
    """What does the cases."""

    at_once: int

    def put(self, case: Case) -> None:
        """Hand in a case."""

    def next_word(self, wait_s: float, *, patience_s: float) -> Said | None:
        """The next message, None if there is none within `wait_s`."""

    def stop(self) -> None:
        """Ask it to begin nothing more; masks in writing are finished."""

    def kill(self) -> None:
        """End it now, and leave no zombie."""


class WorkerProcess:
    """A worker process as its parent sees it.

    Args:
        setup: what the process needs to know.
    """

    def __init__(self, setup: Setup) -> None:
        self.at_once = AT_ONCE + setup.lanes - 1
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=main, args=(theirs, setup), name="medseg-worker", daemon=True)
        with _ctrl_c_for_the_parent_alone():
            self.process.start()
        theirs.close()
        self.last_word = time.monotonic()

    def put(self, case: Case) -> None:
        """Hand in a case.

        Raises:
            WorkerDiedError: if the process has ended.
        """
        try:
            self.connection.send(case)
        except OSError as error:
            raise WorkerDiedError(self.how_it_died()) from error

    def next_word(self, wait_s: float, *, patience_s: float) -> Said | None:
        """The next message, None if there is none within `wait_s`.

        Args:
            wait_s: how long to wait.
            patience_s: how long the process may say nothing before it counts as dead.

        Raises:
            WorkerDiedError: if the process has ended, or lost the parent's patience (it is killed then).
        """
        wait([self.connection, self.process.sentinel], timeout=wait_s)
        try:
            if self.connection.poll():
                said: Said = self.connection.recv()
                self.last_word = time.monotonic()
                return said
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self.how_it_died()) from error
        if not self.process.is_alive():
            raise WorkerDiedError(self.how_it_died())
        if time.monotonic() - self.last_word > patience_s:
            self.kill()
            raise WorkerDiedError(f"gave no answer for {patience_s:.0f} s")
        return None

    def how_it_died(self) -> str:
        """A phrase for the report, such as "was ended by SIGKILL"."""
        self.process.join(STOP_S)
        code = self.process.exitcode
        if code is None:
            return "closed its connection"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was ended by {name}" + (" (often for want of memory)" if name == "SIGKILL" else "")

    def stop(self) -> None:
        """Ask it to begin nothing more; masks in writing are finished."""
        try:
            self.connection.send(None)
        except OSError:
            logger.debug("the worker has ended already")

    def kill(self) -> None:
        """End it now, and leave no zombie."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class InProcess:
    """Does the cases in this process, one after the other, for tests and notebooks.

    Args:
        setup: as for a process.
    """

    at_once = 1

    def __init__(self, setup: Setup) -> None:
        self._words: deque[Said] = deque()
        self._stages = None
        try:
            self._stages = make_stages(setup)
        except Exception as error:
            self._words.append(_no_model(error))
        else:
            self._words.append(Said("ready", device=self._stages.device))

    def put(self, case: Case) -> None:
        """Do a case now; its messages wait."""
        from medseg.inference.stages import Job

        if self._stages is None:
            raise WorkerDiedError("has no model")
        job = Job(case)
        try:
            for step in (self._stages.read, self._stages.network, self._stages.write):
                step(job)
        except Exception as error:
            logger.debug("case %s failed", case.case_id, exc_info=True)
            self._words.append(Said("failed", case.case_id, failure=failure_in(self._stages, job, error)))
        else:
            self._words.append(Said("done", case.case_id, result=job.result))

    def next_word(self, wait_s: float, *, patience_s: float) -> Said | None:
        """The next message; never waits."""
        return self._words.popleft() if self._words else None

    def stop(self) -> None:
        """Nothing is ever left undone."""

    def kill(self) -> None:
        """Let go of the model."""
        self._stages = None


def make_stages(setup: Setup) -> "Stages":
    """Load the model.

    Raises:
        ConfigError: if it cannot be built, there is no such device, or it has not the memory asked for.
    """
    from medseg.inference.device import choose_device
    from medseg.inference.predictor import Predictor
    from medseg.inference.stages import Stages
    from medseg.inference.tuning import Tuning

    device = choose_device(setup.device)
    if setup.gpu_memory_gb is not None and device == "cpu":
        raise ConfigError("--gpu-memory: the network runs on the CPU here; leave it out (medseg doctor tells of GPUs)")
    predictor = Predictor.from_bundle(
        setup.bundle,
        device=device,
        precision=setup.precision,
        mirroring=setup.mirroring,
        tuning=Tuning(gpu_memory_gb=setup.gpu_memory_gb),
    )
    module, _, name = setup.hook.partition(":")
    hook = getattr(importlib.import_module(module), name) if module else None
    return Stages(predictor, setup, device=device, check_disk=check_disk, hook=hook)


def check_disk(folder: Path, need_mb: float) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        OSError: ENOSPC, if less than `need_mb` is free where `folder` lies.
    """
    free_mb = shutil.disk_usage(folder).free / 2**20
    if free_mb < need_mb:
        raise OSError(ENOSPC, f"no room for another mask: {need_mb:.1f} MB needed, {free_mb:.1f} MB free")


def failure_in(stages: "Stages", job: "Job", error: Exception) -> Failure:
    """What an error in a job means; never raises, for the parent waits for every case to be told of."""
    try:
        return stages.failure(job, error)
    except Exception as another:
        logger.debug("no message of a failure", exc_info=another)
        return Failure("crash", type(error).__name__, job.step)


def main(connection: Connection, setup: Setup) -> None:
    """What the process runs: cases in, messages out, until `None` comes or the other end is gone."""
    from medseg.inference.lanes import lanes
    from medseg.inference.pipeline import MemoryGate, Pipeline
    from medseg.inference.stages import Job

    import torch  # isort: skip  # after `stages`, which makes its import short

    if not os.environ.get("MEDSEG_DEBUG"):
        warnings.simplefilter("ignore")  # the report has what matters; a library's words may hold a name
    lock = threading.Lock()

    def say(said: Said) -> None:
        with lock:
            connection.send(said)

    def stage(name: Stage, job: Job) -> None:
        say(Said("begun", job.case.case_id, stage=name))
        getattr(stages, name)(job)

    def read(job: Job) -> None:
        job.need_mb = stages.need_mb(job.case)
        gate.enter(job.need_mb)
        stage("read", job)

    def network(job: Job) -> None:
        stage("network", job)

    def write(job: Job) -> None:
        stage("write", job)

    def on_done(job: Job) -> None:
        gate.leave(job.need_mb)
        say(Said("done", job.case.case_id, result=job.result))

    def on_failed(job: Job, error: Exception) -> None:
        logger.debug("case %s failed", job.case.case_id, exc_info=error)
        failure = failure_in(stages, job, error)
        if failure.breaks_worker:
            pipeline.stop()
        gate.leave(job.need_mb)
        say(Said("failed", job.case.case_id, failure=failure))

    try:
        stages = make_stages(setup)
    except Exception as error:
        say(_no_model(error))
        return
    gc.freeze()  # modules and the model stay to the end; nothing among them is garbage
    budget_mb = MEMORY_SHARE * available_mb()
    channels = len(setup.bundle.channels)
    in_network, network_mb = lanes(stages.predictor, channels=channels, most=setup.lanes, budget_mb=budget_mb)
    gate = MemoryGate(budget_mb - network_mb)
    threads = torch.get_num_threads() // in_network
    pipeline: Pipeline[Job] = Pipeline(
        [read, network, write],
        lanes=[1, in_network, 1],
        initializer=partial(torch.set_num_threads, threads),  # of OpenMP, each thread of Python has a number of its own
        on_done=on_done,
        on_failed=on_failed,
    )
    say(Said("ready", device=stages.device))
    try:
        while (case := connection.recv()) is not None:
            pipeline.put(Job(case))
        pipeline.stop()
        connection.recv()  # until the parent ends this process
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone; whoever does the folder next must not meet this process


def _no_model(error: Exception) -> Said:
    failure = failure_of(error, "network")
    return Said("broken", failure=failure if failure.cause in ("device", "memory") else failure._replace(cause="model"))


@contextmanager
def _ctrl_c_for_the_parent_alone() -> Iterator[None]:
    """Let a process started now ignore Ctrl-C, which a terminal sends to both; the parent decides what happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
