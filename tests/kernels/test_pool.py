"""Threads that share the work of a block: order within a chain, blocks that run ahead, errors."""

import threading

import pytest

from streamattn_cli.engine.workers.pool import Workers

SPEC = {"mine": ((1,), "i8")}
PATIENCE = 60  # seconds: only there so that a hang fails


@pytest.fixture(params=[1, 2, 3])
def workers(request):
    workers = Workers(request.param, SPEC)
    yield workers
    workers.close()


def test_items_of_a_chain_go_in_order_through_all_batches(workers):
    done = {lane: [] for lane in range(5)}

    def task(item, work):
        lane, number = item
        work["mine"] += 1
        done[lane].append(number)

    batches = [
        workers.start(task, [[(lane, 10 * batch + step) for step in range(7)] for lane in done]) for batch in range(6)
    ]
    for batch in batches:
        batch.wait()
    assert all(numbers == [10 * batch + step for batch in range(6) for step in range(7)] for numbers in done.values())
    assert workers.total("mine") == 5 * 6 * 7


def test_no_two_items_of_a_chain_at_the_same_time_and_none_share_scratch(workers):
    busy, used, clashes = set(), set(), []

    def task(lane, work):
        if lane in busy or id(work) in used:
            clashes.append(lane)
        busy.add(lane)
        used.add(id(work))
        threading.Event().wait(1e-4)
        busy.discard(lane)
        used.discard(id(work))

    for batch in [workers.start(task, [[lane] * 4 for lane in range(4)]) for _ in range(5)]:
        batch.wait()
    assert not clashes


def test_a_lane_that_is_early_begins_with_the_next_batch():
    workers, late, ahead = Workers(2, SPEC), threading.Event(), threading.Event()

    def first(lane, work):
        if lane == 1:
            assert late.wait(PATIENCE)

    def second(lane, work):
        if lane == 0:
            ahead.set()

    batches = [workers.start(task, [[0], [1]]) for task in (first, second)]
    assert ahead.wait(PATIENCE), "lane 0 waited for lane 1"
    assert not batches[0].done.is_set()
    late.set()
    for batch in batches:
        batch.wait()
    workers.close()


def test_a_batch_that_comes_when_the_one_before_has_just_ended_is_worked_on_once():
    """Whoever waits for a batch begins the next one as soon as it hears of the end, whatever a thread is about then."""
    workers, batches, twice = Workers(2, SPEC), [], []

    class Eager:
        """The lock of the workers; when it is free again, and a batch has ended, the next one begins."""

        def __init__(self, lock):
            self.lock = lock

        def __enter__(self):
            self.lock.acquire()

        def __exit__(self, *exc):
            waiting = list(workers._ready)
            twice.extend(waiting if len(set(waiting)) < len(waiting) else [])
            self.lock.release()
            if batches and batches[-1] and batches[-1].done.is_set() and len(batches) < 50:
                batches.append(None)
                batches[-1] = workers.start(lambda item, work: None, [[0, 1]])

    workers._lock = Eager(workers._lock)
    first = workers.start(lambda item, work: None, [[0, 1]])
    batches.append(first)
    with workers._lock:
        pass
    for number in range(50):
        while len(batches) <= number or batches[number] is None:
            threading.Event().wait(1e-3)
        assert batches[number].done.wait(PATIENCE)
    workers.close()
    assert not twice


def test_the_first_error_in_the_order_of_chains(workers):
    done = []

    def task(item, work):
        done.append(item)
        if item in ("b1", "c0"):
            raise ValueError(item)

    with pytest.raises(ValueError, match="b1"):
        workers.start(task, [["a0", "a1", "a2"], ["b0", "b1", "b2"], ["c0", "c1"]]).wait()
    assert sorted(done) == ["a0", "a1", "a2", "b0", "b1", "c0"]
    workers.start(task, [["a3"], ["b3"]]).wait()  # and it goes on


def test_run_and_nothing_to_do(workers):
    done = []
    workers.run(lambda item, work: done.append(item), range(9))
    workers.run(lambda item, work: done.append(item), [9])
    workers.run(lambda item, work: done.append(item), [])
    workers.start(lambda item, work: done.append(item), []).wait()
    workers.start(lambda item, work: done.append(item), [[], []]).wait()
    assert sorted(done) == list(range(10))
    with pytest.raises(ZeroDivisionError):
        workers.run(lambda item, work: item / item, [1, 0, 2])
