"""Who is next in the queue."""

from adaptive_lm.serve.scheduler.fair_queue import FairQueue


def queue_of(*jobs: tuple[str, str, float, float]) -> FairQueue[str]:
    """Add (job, client, time of arrival, work); a unit of work takes a second."""
    queue: FairQueue[str] = FairQueue()
    for name, client, now, work in jobs:
        queue.add(name, client, now=now, work=work, seconds=work)
    return queue


def order(queue: FairQueue[str]) -> str:
    return "".join(queue.take() or "" for _ in range(len(queue)))


def test_an_empty_queue_has_nothing_next() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.take() is None
    assert (len(queue), list(queue), queue.of("unknown")) == (0, [], 0)


def test_clients_take_turns_whatever_the_number_of_their_jobs() -> None:
    queue = queue_of(
        *[(letter, "many", 0.0, 1.0) for letter in "abcde"], ("X", "few", 1.0, 1.0), ("Y", "few", 1.0, 1.0)
    )
    assert order(queue) == "aXbYcde"


def test_work_counts_and_not_the_number_of_jobs() -> None:
    queue = queue_of(
        *[(letter, "long", 0.0, 3.0) for letter in "abc"], *[(str(n), "short", 0.0, 1.0) for n in range(6)]
    )
    assert order(queue) == "0a12b345c"


def test_of_one_client_the_short_go_first_but_the_long_do_not_wait_for_ever() -> None:
    queue = queue_of(("L", "one", 0.0, 5.0), ("a", "one", 1.0, 1.0), ("b", "one", 3.9, 1.0), ("c", "one", 4.1, 1.0))
    assert order(queue) == "abLc"


def test_a_client_that_comes_later_does_not_get_back_the_time_that_it_was_away() -> None:
    queue = queue_of(*[(letter, "early", 0.0, 1.0) for letter in "abcdef"])
    for _ in range(3):
        queue.take()
    for letter in "XYZ":
        queue.add(letter, "late", now=9.0, work=1.0, seconds=1.0)
    assert order(queue) == "XdYeZf"


def test_a_job_that_ended_early_counts_for_what_it_took() -> None:
    queue = queue_of(("a", "one", 0.0, 10.0), ("b", "one", 1.0, 10.0), ("X", "two", 0.0, 10.0), ("Y", "two", 1.0, 10.0))
    assert queue.take() == "a"
    assert queue.take() == "X"
    queue.done("two", correction=-8.0)
    assert queue.take() == "Y"


def test_a_job_is_removed_once() -> None:
    queue = queue_of(("a", "one", 0.0, 1.0), ("b", "one", 0.0, 1.0))
    assert queue.remove("a", "one")
    assert not queue.remove("a", "one")
    assert not queue.remove("a", "unknown")
    assert (len(queue), list(queue), queue.of("one")) == (1, ["b"], 1)


def test_clients_that_have_nothing_here_are_forgotten() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.add("job", f"client {number}", now=0.0, work=1.0, seconds=1.0)
        assert queue.take() == "job"
        queue.done(f"client {number}")
    queue.add("job", "last", now=0.0, work=1.0, seconds=1.0)
    queue.remove("job", "last")
    assert not queue._clients
