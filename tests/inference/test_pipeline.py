import threading
import time

import pytest

from medseg.inference.pipeline import MemoryGate, Pipeline


def through(steps, works):
    """What came of each piece of work, in the order of its end."""
    ended = []
    pipeline = Pipeline(
        steps,
        on_done=lambda work: ended.append((work, None)),
        on_failed=lambda work, error: ended.append((work, error)),
    )
    for work in works:
        pipeline.put(work)
    pipeline.finish()
    return ended


def test_every_step_sees_every_work_in_order():
    seen = [[], [], []]
    ended = through([part.append for part in seen], [1, 2, 3, 4, 5])
    assert seen == [[1, 2, 3, 4, 5]] * 3
    assert ended == [(work, None) for work in (1, 2, 3, 4, 5)]


def test_a_failure_ends_that_work_alone():
    def second(work):
        if work == 2:
            raise ValueError("two")

    third = []
    ended = dict(through([lambda work: None, second, third.append], [1, 2, 3]))
    assert third == [1, 3]
    assert isinstance(ended.pop(2), ValueError)
    assert ended == {1: None, 3: None}


def test_a_failure_that_cannot_be_told_does_not_end_the_thread(caplog):
    def first(work):
        if work == 1:
            raise ValueError("one")

    def on_failed(work, error):
        raise OSError("stale")

    ended = []
    pipeline = Pipeline([first, lambda work: None], on_done=ended.append, on_failed=on_failed)
    for work in (1, 2, 3):
        pipeline.put(work)
    ender = threading.Thread(target=pipeline.finish, daemon=True)  # waits for ever if the thread has ended
    ender.start()
    ender.join(10)
    assert ended == [2, 3]
    assert "a failure could not be told (OSError)" in caplog.text


def test_steps_of_neighbors_overlap():
    # each step waits for the next work's earlier step: this ends only if all three are at work at the same time
    meeting = threading.Barrier(3, timeout=10)

    def first(work):
        if work == 3:
            meeting.wait()

    def second(work):
        if work == 2:
            meeting.wait()

    def third(work):
        if work == 1:
            meeting.wait()

    assert through([first, second, third], [1, 2, 3]) == [(1, None), (2, None), (3, None)]


def test_lanes_of_a_step_work_side_by_side_and_all_work_comes_through():
    meeting, began = threading.Barrier(2, timeout=10), []
    ended = []
    pipeline = Pipeline(
        [lambda work: None, lambda work: meeting.wait(), lambda work: None],
        lanes=[1, 2, 1],
        initializer=lambda: began.append(threading.get_ident()),
        on_done=ended.append,
        on_failed=lambda work, error: ended.append(error),
    )
    for work in range(6):
        pipeline.put(work)
    pipeline.finish()
    assert sorted(ended) == list(range(6))
    assert len(set(began)) == 4  # once in each thread


def test_work_does_not_pile_up_between_steps():
    began = []
    free = threading.Event()

    def last(work):
        free.wait(10)

    pipeline = Pipeline([began.append, last], on_done=lambda work: None, on_failed=lambda work, error: None)
    for work in range(10):
        pipeline.put(work)
    time.sleep(0.3)
    assert len(began) <= 3  # one in the last step, one before it, one that waits to be handed on
    free.set()
    pipeline.finish()
    assert began == list(range(10))


def test_a_stopped_pipeline_finishes_the_last_step_alone():
    ended, in_second, go_on = [], threading.Event(), threading.Event()

    def second(work):
        in_second.set()
        go_on.wait(10)

    pipeline = Pipeline(
        [lambda work: None, second, lambda work: None], on_done=ended.append, on_failed=lambda work, error: None
    )
    for work in (1, 2, 3):
        pipeline.put(work)
    in_second.wait(10)
    pipeline.stop()
    go_on.set()
    pipeline.finish()
    assert ended == [1]


@pytest.mark.parametrize(("second_mb", "waits"), [(40, False), (60, True)])
def test_cases_enter_while_they_fit_together(second_mb, waits):
    gate = MemoryGate(100)
    gate.enter(60)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (gate.enter(second_mb), entered.set()), daemon=True)
    thread.start()
    assert entered.wait(0.2 if waits else 10) is not waits
    gate.leave(60)
    assert entered.wait(10)


def test_a_case_alone_enters_however_large_it_is():
    gate = MemoryGate(100)
    gate.enter(5000)
    gate.leave(5000)
    gate.enter(1)
