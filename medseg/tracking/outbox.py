"""From a run's journal to MLflow: in batches, in order, and later if MLflow does not answer now."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medseg.tracking.journal import FOLDER, Journal, Record
from medseg.tracking.model import register
from medseg.tracking.store import failures, first_line, is_refusal, time_for
from medseg.writing import aside

logger = logging.getLogger(__name__)

BATCH = {"metrics": 800, "params": 100, "tags": 100}  # MLflow takes no more in one call, 1000 in all
PATIENCE = 100  # a failed try is followed by a pause this many times as long: a dead server costs 1 % of the time


class Outbox:
    """A run's journal, and how much of it MLflow has.

    `RUN/tracking/sent.json` holds the byte up to which MLflow has the journal, and the files before it that its place
    for artifacts did not take: figures do not wait for files. Sending something twice does no harm: MLflow keeps equal
    records once.

    Args:
        client: MLflow's.
        run_id: MLflow's id of the run.
        folder: the run's folder.
    """

    def __init__(self, client: Any, run_id: str, folder: Path) -> None:
        self.client, self.run_id, self.journal = client, run_id, Journal(folder)
        self._position = folder / FOLDER / "sent.json"
        self._sent, self._files_left = self._read_position()
        self._again_at = 0.0
        self._failing, self._files_fail, self._disk_fails = False, False, False
        self._noted: dict[str, Any] = {self.run_id: {"bytes": self._sent, "files_left": list(self._files_left)}}
        self.tried_at = time.monotonic()

    def put(self, record: Record) -> None:
        """Write a record into the journal; a disk that takes none stops nothing."""
        try:
            self.journal.append(record)
        except OSError as error:
            if not self._disk_fails:
                logger.warning("the run's record cannot be written (%s); the run goes on", first_line(error))
            self._disk_fails = True
        else:
            self._disk_fails = False

    def send(self, *, now: bool = False) -> bool:
        """Send what MLflow does not have yet; whether it has everything then.

        Args:
            now: even if the last try failed a short time ago, and the files that were not taken too.
        """
        self.tried_at = started = time.monotonic()
        if started < self._again_at and not now:
            return False
        try:
            self.send_or_raise(files_left=now)
        except Exception as error:  # whatever a store raises, it must not end a training
            self._again_at = time.monotonic() + PATIENCE * (time.monotonic() - started)
            self._say_once(error)
            return False
        if self._failing and not self._files_left:
            logger.info("MLflow answers again and has all records")
            self._failing = False
        self._again_at = 0.0
        return not self._files_left

    def is_behind(self) -> bool:
        """Whether MLflow lacks something."""
        return bool(self._files_left) or next(self.journal.records(self._sent), None) is not None

    def send_or_raise(self, *, files_left: bool = True) -> None:
        """Send what MLflow does not have yet.

        Args:
            files_left: try those files too that its place for artifacts did not take before.

        Raises:
            Exception: one of `store.failures()`, if MLflow does not answer.
        """
        self.journal.write()
        self._files_fail = False
        if files_left and self._files_left:
            again, self._files_left = self._files_left, []
            for record in again:
                self._send_file(record)
        batch = _Batch()
        end = self._sent
        for end, record in self.journal.records(self._sent):
            if not batch.take(record):
                self._send_batch(batch)
                self._send_single(record)
                self._advance(end)
                batch = _Batch()
            elif batch.is_full():
                self._send_batch(batch)
                self._advance(end)
                batch = _Batch()
        self._send_batch(batch)
        self._advance(end)

    def _send_batch(self, batch: "_Batch") -> None:
        for call in batch.calls():
            if self._taken(partial(self.client.log_batch, self.run_id, **call)):
                continue
            for kind, entities in call.items():  # something in it is refused: each alone, so that only that is lost
                for entity in entities:
                    one = partial(self.client.log_batch, self.run_id, **{kind: [entity]})
                    self._taken(one, f"{kind} {entity.key}")

    def _send_single(self, record: Record) -> None:
        if "artifact" in record:
            self._send_file(record)
        elif "data" in record:
            self._taken(partial(self.client.log_inputs, self.run_id, _inputs(record["data"])), "the data set")
        elif "register" in record:
            self._taken(partial(register, self.client, self.run_id, **record["register"]), "the registered model")
        elif "status" in record:
            self._taken(partial(_set_status, self.client, self.run_id, record), "the status")

    def _send_file(self, record: Record) -> None:
        """Send one file, or keep it for later: after one that fails, others are not tried in the same go."""
        path = self.journal.folder / record["artifact"]
        if not path.is_file():
            logger.warning("%s is gone from the run's folder; MLflow does not get it", path.name)
            return
        if not self._files_fail:
            try:
                with time_for(path.stat().st_size):
                    self.client.log_artifact(self.run_id, str(path), record["to"])
                return
            except Exception as error:  # each kind of artifact store has errors of its own
                self._files_fail = True
                self._say_once(error)
        if record not in self._files_left:
            self._files_left.append(record)

    def _say_once(self, error: Exception) -> None:
        if not self._failing:
            kept = "records are kept in the run's folder and sent later"
            logger.warning("MLflow does not answer (%s); the run goes on, its %s", first_line(error), kept)
        self._failing = True

    def _taken(self, call: Callable[[], object], what: str | None = None) -> bool:
        """Whether MLflow took it; what it will never take is named and passed over, for the sake of what follows."""
        try:
            call()
        except failures() as error:
            if not is_refusal(error):
                raise
            if what:
                logger.warning("MLflow refuses %s (%s); the run goes on", what, first_line(error))
            return False
        return True

    def _read_position(self) -> tuple[int, list[Record]]:
        try:
            sent = json.loads(self._position.read_text(encoding="utf-8")).get(self.run_id, {})
        except (OSError, ValueError):
            sent = {}
        return int(sent.get("bytes", 0)), list(sent.get("files_left", []))

    def _advance(self, end: int) -> None:
        position = {self.run_id: {"bytes": end, "files_left": list(self._files_left)}}
        self._sent = end
        if position != self._noted:
            with aside(self._position) as temporary:
                temporary.write_text(json.dumps(position), encoding="utf-8")
            self._noted = position


class _Batch:
    """Metrics, parameters and tags that go out together."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int, int]] = []
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}

    def take(self, record: Record) -> bool:
        """Add the record; False if it is none that goes in batches."""
        if "metrics" in record:
            self.metrics += [(key, value, record["time"], record["step"]) for key, value in record["metrics"].items()]
        elif "params" in record:
            self.params |= record["params"]
        elif "tags" in record:
            self.tags |= record["tags"]
        else:
            return "start" in record
        return True

    def is_full(self) -> bool:
        return any(len(getattr(self, kind)) >= size for kind, size in BATCH.items())

    def calls(self) -> Iterator[dict[str, Sequence[Any]]]:
        """Arguments of each `log_batch`."""
        from mlflow.entities import Metric, Param, RunTag

        left: dict[str, list[Any]] = {
            "metrics": [Metric(*metric) for metric in self.metrics],
            "params": [Param(key, value) for key, value in self.params.items()],
            "tags": [RunTag(key, value) for key, value in self.tags.items()],
        }
        while any(left.values()):
            yield {kind: entities[: BATCH[kind]] for kind, entities in left.items() if entities}
            left = {kind: entities[BATCH[kind] :] for kind, entities in left.items()}


def _inputs(datasets: Sequence[Mapping[str, str]]) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=data["name"], digest=data["digest"], source_type="local", source="{}", profile=data["profile"]
            ),
            [InputTag("mlflow.data.context", data["context"])] if data.get("context") else [],
        )
        for data in datasets
    ]


def _set_status(client: Any, run_id: str, record: Record) -> None:
    if record["status"] != "RUNNING":
        client.set_terminated(run_id, record["status"], record["time"])
        return
    client.update_run(run_id, status="RUNNING")
    if "error" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "error")
