"""Checkpoints that survive: written aside, synced, read back, renamed; the newest two are kept."""

import io
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events

from medseg.errors import ConfigError, DataError
from medseg.writing import aside
from workflows import distributed

if TYPE_CHECKING:
    from workflows.experiment import Experiment

logger = logging.getLogger(__name__)

FOLDER, PATTERN = "checkpoints", "epoch_*.pt"
KEPT = 2


def write_checkpoint(state: Mapping[str, Any], run: Path) -> Path:
    """Write `run/checkpoints/epoch_000123.pt`, whole or not at all, and delete all but the newest two.

    Args:
        state: plain types and tensors; `epoch` names the file.
        run: the run's folder.

    Raises:
        DataError: if the file cannot be written or read back; the earlier ones are then as they were.
    """
    target = run / FOLDER / f"epoch_{state['epoch']:06d}.pt"
    content = io.BytesIO()  # torch itself would report a full disk as a wrong position in a file
    torch.save(dict(state), content)
    try:
        with aside(target) as temporary:
            temporary.write_bytes(content.getbuffer())
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # so that what is read back has reached the disk
            read_checkpoint(temporary)
    except OSError as error:
        raise DataError(
            f"checkpoint {target.name} of run {run.name}: cannot be written ({error.strerror or error}); the earlier "
            "ones are whole: free space on the disk, then continue with --resume"
        ) from error
    for old in [*_found(run)[KEPT:], *target.parent.glob(f".*-{PATTERN}")]:  # the latter of a kill while writing
        old.unlink(missing_ok=True)
    return target


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint, tensors on the CPU; every byte is checked against the file's checksums.

    Raises:
        DataError: if the file is not whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            broken = archive.testzip()
        if broken:
            raise zipfile.BadZipFile(f"wrong checksum of {Path(broken).name}")
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise DataError(f"checkpoint {path.name}: is not whole ({reason})") from error
    return state


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """The newest checkpoint of a run that can be read; which one it is, is logged.

    Raises:
        DataError: if there is none.
    """
    broken = []
    for path in _found(run):
        try:
            state = read_checkpoint(path)
        except DataError as error:
            broken.append(path.name)
            logger.warning("%s; trying the one before", error)
        else:
            logger.info("resuming run %s from checkpoint %s", run.name, path.name)
            return state
    if broken:
        raise DataError(
            f"run {run.name}: none of its checkpoints can be read ({', '.join(broken)}); "
            "restore one from a backup, or start a new training"
        )
    raise DataError(f"run {run.name}: has no checkpoint, it ended before its first epoch; start a new training")


def _found(run: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted((run / FOLDER).glob(PATTERN), reverse=True)


class Checkpoints:
    """Handler of the trainer: writes a checkpoint before the first and after each epoch, and continues from one.

    It must follow the validation among the handlers, so that a checkpoint knows what its epoch has shown. Random
    states are not part of it: they follow from seed and epoch, see `workflows.randomness`.

    Args:
        experiment: the run to write into, or to continue.
        parts: name -> object with `state_dict` and `load_state_dict`; all that training changes.
        seed: of the training.
        interval: epochs from one checkpoint to the next; a kill loses no more than that.
    """

    def __init__(self, experiment: "Experiment", parts: Mapping[str, Any], *, seed: int, interval: int = 1) -> None:
        if interval < 1:
            raise ConfigError(f"checkpoint_interval: is {interval}; give a number of epochs, at least 1")
        self.experiment, self.parts, self.seed, self.interval = experiment, dict(parts), seed, interval

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)

    def _start(self, engine: Engine) -> None:
        checkpoint = self.experiment.take_checkpoint()
        if checkpoint is None:
            self._write(engine)
            return
        if missing := self.parts.keys() - checkpoint.keys():
            raise DataError(
                f"the checkpoint lacks {', '.join(sorted(missing))}; resume it with the medseg that wrote it"
            )
        for name, part in self.parts.items():
            part.load_state_dict(checkpoint[name])
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["epoch"] * engine.state.epoch_length
        before, now = checkpoint.get("processes", 1), distributed.processes()
        if before != now:
            logger.warning(
                "the training ran in %d processes and now in %d: the weights will differ in the last digits, and by "
                "more if that changes batch_size",
                before,
                now,
            )
        if checkpoint["device"] != str(engine.state.device):
            logger.warning(
                "the device was %s and is now %s: the weights will differ in the last digits",
                checkpoint["device"],
                engine.state.device,
            )

    def _finish_epoch(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        if not distributed.is_first():
            return
        state = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seed": self.seed,
            "run_id": self.experiment.run.run_id,
            "device": str(engine.state.device),
            "processes": distributed.processes(),
        }
        write_checkpoint(state | {name: part.state_dict() for name, part in self.parts.items()}, self.experiment.folder)
