"""The supervisor with workers that only play their part."""

from collections import deque
from pathlib import Path

import pytest

from medseg.inference.cases import Case
from medseg.inference.faults import Failure
from medseg.inference.messages import Result, Said
from medseg.inference.supervisor import Stop, Supervisor
from medseg.inference.worker import WorkerDiedError

DONE = Result({"status": "done"}, [], (), Path("mask"))


READY = Said("ready", device="cpu")


class Actor:
    """A worker that plays a script: per case what it says each time, `"die"`, a `Failure`, or (by default) done."""

    at_once = 3

    def __init__(self, script, log, start=READY):
        self.script, self.log, self.words = script, log, deque([start])
        self.inside, self.killed = [], False
        log.append("started")

    def put(self, case):
        self.inside.append(case.case_id)
        self.log.append(f"put {case.case_id}")

    def next_word(self, wait_s, *, patience_s):
        if self.words:
            return self.words.popleft()
        if wait_s == 0:
            return None
        case_id = self.inside.pop(0)
        acts = self.script.get(case_id, [])
        act = acts.pop(0) if acts else DONE
        if act == "die":
            raise WorkerDiedError("was ended by SIGKILL")
        if isinstance(act, Failure):
            return Said("failed", case_id, failure=act)
        return Said("done", case_id, result=act)

    def stop(self):
        self.log.append("asked to stop")

    def kill(self):
        self.killed = True


class Journal:
    def __init__(self, taken=()):
        self.told, self.taken = {}, taken

    def claim(self, case):
        return case.case_id not in self.taken

    def done(self, case, result):
        self.told[case.case_id] = "done"

    def failed(self, case, failure):
        self.told[case.case_id] = failure


def play(script, case_ids="abcdef", *, taken=(), **settings):
    """What was told of each case, why it stopped, and the log of the workers."""
    log, actors = [], []

    def make_worker():
        actors.append(Actor(script, log))
        return actors[-1]

    journal = Journal(taken)
    supervisor = Supervisor(make_worker, journal, **settings)
    stop = supervisor.run([Case(case_id, ()) for case_id in case_ids])
    assert all(actor.killed for actor in actors)
    return journal.told, stop, log


def test_all_cases_of_a_good_folder_are_done_by_one_worker():
    told, stop, log = play({})
    assert told == dict.fromkeys("abcdef", "done")
    assert stop is None
    assert log.count("started") == 1


def test_no_case_needs_no_worker():
    assert play({}, "") == ({}, None, [])


def test_a_failed_case_lets_the_others_go_on():
    told, stop, log = play({"b": [Failure("input", "cut short")]})
    assert told == {**dict.fromkeys("acdef", "done"), "b": Failure("input", "cut short")}
    assert (stop, log.count("started")) == (None, 1)


def test_after_a_death_the_cases_inside_are_done_again_one_at_a_time():
    told, stop, log = play({"a": ["die"]})
    assert told == dict.fromkeys("abcdef", "done")
    assert stop is None
    # a, b and c were inside; afterwards each is put in only once the one before is out
    assert log[:7] == ["started", "put a", "put b", "put c", "started", "put a", "put b"]


def test_a_case_that_two_workers_die_of_has_failed_and_its_neighbors_are_done():
    told, stop, log = play({"b": ["die", "die"]})
    assert told["b"].cause == "crash"
    assert told["b"].message == "the process that did it was ended by SIGKILL, twice; report this scan"
    assert {told[case_id] for case_id in "acdef"} == {"done"}
    assert log.count("started") == 3
    assert stop is None


def test_a_lost_gpu_replaces_the_worker_and_the_case_is_tried_once_more():
    told, stop, log = play({"b": [Failure("device", "CUDA error", "network")]})
    assert told == dict.fromkeys("abcdef", "done")
    assert (stop, log.count("started")) == (None, 2)
    told, stop, _ = play({"b": [Failure("device", "CUDA error", "network")] * 2})
    assert told.pop("b").cause == "device"
    assert set(told.values()) == {"done"}
    assert stop is None


def test_a_case_short_of_memory_beside_others_is_tried_alone():
    told, _, log = play({"a": [Failure("memory", "MemoryError")]})
    assert told == dict.fromkeys("abcdef", "done")
    assert log.count("put a") == 2
    assert play({"a": [Failure("memory", "MemoryError")] * 2})[0]["a"].cause == "memory"


@pytest.mark.parametrize("cause", ["disk", "share", "model", "device", "memory"])
def test_ten_failures_of_one_cause_stop_the_run(cause):
    case_ids = [f"{number:02}" for number in range(30)]
    script = {case_id: [Failure(cause, "no")] * 2 for case_id in case_ids[5:]}
    told, stop, _ = play(script, case_ids)
    assert sum(value != "done" for value in told.values()) == 10
    assert stop.cause == cause
    assert "10 cases in a row failed for want of" in stop.message
    assert stop.message.endswith("then run the same command")


def test_a_disk_that_is_full_at_the_end_stops_the_run_too():
    told, stop, _ = play({"e": [Failure("disk", "full")], "f": [Failure("disk", "full")]})
    assert told["f"].cause == "disk"
    assert stop.message.startswith("2 cases in a row failed for want of disk space; free space on OUT's disk")


def test_any_number_of_bad_scans_is_worked_through():
    case_ids = [str(number) for number in range(30)]
    told, stop, _ = play({case_id: [Failure("input", "bad")] for case_id in case_ids}, case_ids)
    assert (len(told), stop) == (30, None)


def test_strict_stops_at_the_first_failure():
    told, stop, log = play({"a": [Failure("input", "bad")]}, strict=True)
    assert list(told) == ["a"]
    assert stop == Stop(None, "at the first failure, as --strict asks")
    assert "asked to stop" in log


def test_cases_of_another_process_are_left_to_it():
    told, _, log = play({}, taken="be")
    assert sorted(told) == list("acdf")
    assert "put b" not in log


def test_a_model_that_cannot_be_loaded_stops_the_run():
    broken = Said("broken", failure=Failure("model", "weights are not of its network_def"))
    supervisor = Supervisor(lambda: Actor({}, [], broken), Journal())
    assert supervisor.run([Case("a", ())]) == Stop("model", "weights are not of its network_def")


def test_a_worker_that_dies_before_it_is_ready_is_tried_twice():
    log = []

    class Stillborn(Actor):
        def next_word(self, wait_s, *, patience_s):
            raise WorkerDiedError("was ended by SIGSEGV")

    stop = Supervisor(lambda: Stillborn({}, log), Journal()).run([Case("a", ())])
    assert stop == Stop("crash", "the process for the cases was ended by SIGSEGV, twice")
    assert log == ["started", "started"]


def test_an_interrupted_run_keeps_what_is_being_written():
    journal = Journal()

    class Interrupted(Actor):
        def next_word(self, wait_s, *, patience_s):
            if self.words:
                return self.words.popleft()
            if not supervisor.interrupted:
                supervisor.interrupted = True
                return Said("begun", "a", stage="write")
            return Said("done", "a", result=DONE) if wait_s else None

    log = []
    supervisor = Supervisor(lambda: Interrupted({}, log), journal)
    assert supervisor.run([Case(case_id, ()) for case_id in "abcd"]) == Stop(None, "interrupted")
    assert journal.told == {"a": "done"}


def test_an_interrupted_run_hears_what_was_said_before():
    """A parent that the machine keeps from running finds several messages at once."""
    journal = Journal()

    class Talkative(Actor):
        def put(self, case):
            super().put(case)
            if case.case_id == "b":
                self.words += [Said("begun", "a", stage="read"), Said("begun", "a", stage="write")]
                self.words += [Said("done", "a", result=DONE), Said("begun", "b", stage="network")]
                supervisor.interrupted = True

    log = []
    supervisor = Supervisor(lambda: Talkative({}, log), journal)
    assert supervisor.run([Case(case_id, ()) for case_id in "abcd"]) == Stop(None, "interrupted")
    assert journal.told == {"a": "done"}


def test_a_long_silence_of_the_network_does_not_cost_a_mask_that_is_being_written():
    journal = Journal()

    class Silent(Actor):
        def next_word(self, wait_s, *, patience_s):
            if self.words:
                return self.words.popleft()
            if not supervisor.interrupted:
                supervisor.interrupted = True
                return Said("begun", "a", stage="write")
            if patience_s < 60:  # the network has said nothing for a minute
                raise WorkerDiedError("gave no answer")
            return Said("done", "a", result=DONE) if wait_s else None

    supervisor = Supervisor(lambda: Silent({}, []), journal)
    assert supervisor.run([Case(case_id, ()) for case_id in "abcd"]) == Stop(None, "interrupted")
    assert journal.told == {"a": "done"}
