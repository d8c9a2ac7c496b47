from fl.serving.engine.fair import FairQueue


def test_everybody_gets_the_same_share_by_cost() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(6):
        queue.push(f"short{i}", "a", 1.0)
    for i in range(3):
        queue.push(f"long{i}", "b", 2.0)
    order = queue.drain()
    # In any prefix neither is ahead of the other by more than their longest item.
    for end in range(1, len(order) + 1):
        a = sum(1.0 for item in order[:end] if item.startswith("short"))
        b = sum(2.0 for item in order[:end] if item.startswith("long"))
        assert abs(a - b) <= 2.0 or end == len(order)


def test_who_comes_late_owes_nothing_and_has_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(4):
        queue.push(f"a{i}", "a", 1.0)
    assert [queue.pop(), queue.pop()] == ["a0", "a1"]
    for i in range(2):
        queue.push(f"b{i}", "b", 1.0)
    assert queue.drain() == ["b0", "a2", "b1", "a3"]


def test_an_empty_queue_remembers_nobody() -> None:
    queue: FairQueue[int] = FairQueue()
    for person in range(500):
        queue.push(person, str(person), 5.0)
    assert queue.waiting("3") == 1
    queue.drain()
    assert len(queue) == 0
    assert not queue._ends
    assert not queue._counts


def test_memory_is_bounded_while_it_is_never_empty() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push(-1, "always", 1e9)
    for person in range(2_000):
        queue.push(person, str(person), 0.001)
        queue.push(person, "other", 0.001)
        queue.pop()
        queue.pop()
    assert len(queue._ends) < 300
