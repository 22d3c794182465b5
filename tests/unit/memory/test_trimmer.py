"""When memory is given back."""

from __future__ import annotations

from lowmem_wsgi.memory.trimmer import TRIM_NOW_BYTES, TRIM_REST, Trimmer
from lowmem_wsgi.settings import MB


class Heap:
    """A process at 100 MB, 60 of them allocated: trimming gives back what is free."""

    def __init__(self) -> None:
        self.allocated = 60 * MB
        self.rss = 100 * MB
        self.now = 0.0
        self.other = 0  # what another thread frees while this one trims
        self.trimmer = Trimmer(
            lambda: self.rss, self.trim, in_use=lambda: self.allocated, now=lambda: self.now
        )

    def trim(self) -> None:
        self.now += 0.02
        self.rss = 40 * MB + self.allocated
        self.allocated -= self.other

    def take(self, size: int) -> None:
        self.allocated += size
        self.rss = max(self.rss, 40 * MB + self.allocated)

    @property
    def due(self) -> bool:
        return self.trimmer.is_due(self.now, self.rss)

    def trim_beside_requests(self) -> None:
        assert self.due
        self.trimmer.trim_growth(self.now, self.rss, alone=False)


def test_memory_that_another_request_frees_after_a_trim_in_vain_is_given_back_at_once() -> None:
    heap = Heap()
    heap.take(160 * MB)
    heap.trim_beside_requests()
    assert not heap.due  # it rests: the growth is in use
    heap.allocated -= 160 * MB
    assert heap.rss == 260 * MB
    assert heap.due


def test_memory_that_is_freed_while_another_thread_trims_is_given_back_at_once() -> None:
    heap = Heap()
    heap.other = 80 * MB
    heap.take(160 * MB)
    heap.trim_beside_requests()
    assert heap.due


def test_a_little_that_is_freed_waits_for_the_end_of_the_rest() -> None:
    heap = Heap()
    heap.take(160 * MB)
    heap.trim_beside_requests()
    heap.allocated -= TRIM_NOW_BYTES - MB
    assert not heap.due
    heap.now += 2 * TRIM_REST
    assert heap.due


def test_the_allocator_is_asked_for_a_hundredth_of_the_time_at_most() -> None:
    asked = []

    def in_use() -> int:
        asked.append(heap.now)
        heap.now += 0.001
        return heap.allocated

    heap = Heap()
    heap.trimmer = Trimmer(lambda: heap.rss, heap.trim, in_use=in_use, now=lambda: heap.now)
    heap.take(160 * MB)
    heap.trim_beside_requests()
    asked.clear()
    end = heap.now + TRIM_REST / 2
    while heap.now < end:
        assert not heap.due
        heap.now += 0.0001
    assert 1 <= len(asked) <= 3


def test_where_the_allocator_tells_nothing_only_growth_and_time_count() -> None:
    heap = Heap()
    heap.trimmer = Trimmer(lambda: heap.rss, heap.trim, now=lambda: heap.now)
    heap.take(160 * MB)
    heap.trim_beside_requests()
    heap.allocated -= 160 * MB
    assert not heap.due
    heap.take(200 * MB)
    assert heap.due
