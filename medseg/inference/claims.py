"""Which process does which case: claims that exactly one process gets, and that die with it.

A claim is a file that is created once, `<case>-0.json`. It is never replaced: the process that takes over a dead one
creates the next, `<case>-1.json`, which again only one process can.
"""

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from medseg.inference.out_files import create_once, write_private
from medseg.liveness import runs, this_host, this_process

BEAT_S = 20.0  # a process renews its sign of life this often
MISSED_S = 300.0  # a process of another machine without a sign for this long is dead
COARSE_S = 2.0  # some disks know times to two seconds
LATE_S = 300.0  # so long after its last sign may a killed run's worker still have renamed its mask


@dataclass(frozen=True)
class Work:
    """A process that works on OUT.

    Attributes:
        token: its name here.
        process: as `medseg.liveness.this_process`.
        since: when it began, in seconds since 1970.
        total: cases of its run.
        beat: when it last gave a sign of life, by the clock of OUT's disk.
    """

    token: str
    process: dict[str, Any]
    since: float
    total: int
    beat: float


FRESH = "being written"  # token of a claim that cannot be read yet


class Claims:
    """The claims of this process in OUT, and those of others.

    Args:
        folder: `OUT/.medseg`.
    """

    def __init__(self, folder: Path) -> None:
        self.claims, self.processes = folder / "claims", folder / "processes"
        self.token = uuid4().hex[:12]
        self._held: dict[str, int] = {}
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        self._sign = ""

    def start(self, total: int) -> None:
        """Give a sign of life, and renew it in a thread until `close`."""
        if self._beating is not None:
            return
        self._stop.clear()
        self._sign = json.dumps({"process": this_process(), "since": time.time(), "total": total})
        write_private(self._own_file(), self._sign)
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def close(self) -> None:
        """Give back all claims and take the sign of life away."""
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
        for name in list(self._held):
            self.release(name)
        with suppress(OSError):
            self._own_file().unlink(missing_ok=True)

    def take(self, name: str, case_id: str = "") -> bool:
        """Claim a case for this process; False if another process has it.

        Args:
            name: of its files.
            case_id: what `medseg status` calls it.

        Raises:
            OSError: if OUT cannot be written.
        """
        if name in self._held:
            return True
        self.start(0)
        number = 0
        while (claim := self._read(name, number)) is not None:
            if self._lives(claim):
                return False
            number += 1
        claim = {"token": self.token, "case_id": case_id}
        if not create_once(self._file(name, number), json.dumps(claim)):
            return False
        self._held[name] = number
        if number and not self._file(name, number - 1).exists():  # its owner ended just now, and another may be first
            self.release(name)
            return False
        return True

    def release(self, name: str) -> None:
        """Give a claim back; those of dead processes below it go first."""
        for number in range(self._held.pop(name, -1) + 1):
            with suppress(OSError):
                self._file(name, number).unlink(missing_ok=True)

    def is_busy(self, name: str) -> bool:
        """Whether a living process other than this one has the case."""
        number = 0
        while (claim := self._read(name, number)) is not None:
            if self._lives(claim):
                return bool(claim["token"] != self.token)
            number += 1
        return False

    def is_from_dead(self, name: str, path: Path) -> bool:
        """Whether a file can be what a process wrote that died with the case in its hands.

        Raises:
            OSError: if there is no such file.
        """
        written, number = path.stat().st_mtime, 0
        while (claim := self._read(name, number)) is not None:
            work = self.work(claim["token"])
            began = self._file(name, number).stat().st_mtime
            last = max(began, work.beat if work else began)
            is_other = claim["token"] != self.token
            if is_other and began - COARSE_S <= written <= last + LATE_S and not self._lives(claim):
                return True
            number += 1
        return False

    def is_from_here(self, name: str, path: Path) -> bool:
        """Whether a file was written while this process had the case in its hands.

        Raises:
            OSError: if there is no such file.
        """
        if name not in self._held:
            return False
        return path.stat().st_mtime >= self._file(name, self._held[name]).stat().st_mtime - COARSE_S

    def living(self) -> list[Work]:
        """Other processes that work on OUT now."""
        return [work for work in self.all_work() if work.token != self.token and self._works(work)]

    def forget_dead(self) -> None:
        """Remove the signs of dead processes that have no case in their hands."""
        holders = {claim["token"] for claim in self._all_claims().values()}
        for work in self.all_work():
            if work.token not in holders and work.token != self.token and not self._works(work):
                with suppress(OSError):
                    (self.processes / f"{work.token}.json").unlink(missing_ok=True)

    def all_work(self) -> list[Work]:
        """Every process that said it works on OUT and did not say that it has ended, this one too."""
        found = (self.work(path.stem) for path in self.processes.glob("[!.]*.json"))
        return sorted((work for work in found if work), key=_since)

    def work(self, token: str) -> Work | None:
        """The process of a token; None if it has ended, or its sign is lost."""
        path = self.processes / f"{token}.json"
        try:
            said, beat = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
            return Work(token, said["process"], said["since"], said["total"], beat)
        except (OSError, ValueError, KeyError):
            return None

    def current(self) -> list[str]:
        """Ids of the cases in the hands of living processes."""
        claims = (claim for claim in self._all_claims().values() if self._lives(claim))
        return sorted(case_id for claim in claims if (case_id := str(claim.get("case_id", ""))))

    def _all_claims(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Every claim by the name of its case and its number."""
        parts = [path.stem.rpartition("-") for path in self.claims.glob("[!.]*.json")]
        numbered = [(name, int(number)) for name, _, number in parts if number.isdigit()]
        return {(name, number): claim for name, number in numbered if (claim := self._read(name, number)) is not None}

    def _lives(self, claim: dict[str, Any]) -> bool:
        if claim["token"] in (self.token, FRESH):
            return True
        work = self.work(claim["token"])
        return work is not None and self._works(work)

    def _works(self, work: Work) -> bool:
        if work.process["host"] == this_host():
            return runs(work.process)
        return self._now() - work.beat < MISSED_S

    def _now(self) -> float:
        """The time by the clock of OUT's disk, which other machines' signs are measured by."""
        try:
            os.utime(self._own_file())
            return self._own_file().stat().st_mtime
        except OSError:
            return time.time()

    def _read(self, name: str, number: int) -> dict[str, Any] | None:
        """A claim; None if there is none. One that cannot be read yet counts as living for a while."""
        path = self._file(name, number)
        try:
            claim: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return claim if "token" in claim else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            fresh = path.exists() and self._now() - path.stat().st_mtime < MISSED_S
            return {"token": FRESH if fresh else ""}

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(OSError):  # a share that is away comes back
                try:
                    os.utime(self._own_file())
                except FileNotFoundError:
                    write_private(self._own_file(), self._sign)

    def _own_file(self) -> Path:
        return self.processes / f"{self.token}.json"

    def _file(self, name: str, number: int) -> Path:
        return self.claims / f"{name}-{number}.json"


def _since(work: Work) -> float:
    return work.since
