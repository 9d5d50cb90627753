"""Worker threads run the jobs that a deciding thread hands out; it deals with their results one after another."""

import functools
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread


class Results:
    """Results that wait for the deciding thread. Only that thread calls these methods, except :meth:`put`."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._awaited = 0

    def __bool__(self) -> bool:
        """Whether there is a job whose result is not dealt with yet."""
        return self._awaited > 0

    def expect(self) -> None:
        """Counts one more job that was handed out."""
        self._awaited += 1

    def put(self, call: Callable[[], None]) -> None:
        """Adds a result, as the call that deals with it. Any thread may call this."""
        self._calls.put(call)

    def take(self, timeout: float) -> None:
        """Waits up to ``timeout`` seconds for a result, and deals with all results that are there.

        Raises what a job raised.
        """
        try:
            call = self._calls.get(timeout=timeout)
            while True:
                self._awaited -= 1
                call()
                call = self._calls.get_nowait()
        except Empty:
            return


class Workers:
    """Threads that start jobs in the order in which they were handed out."""

    def __init__(self, threads: int, results: Results, *, name: str) -> None:
        self._results = results
        self._jobs: SimpleQueue[tuple[Callable[[], object], Callable[[object], None]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"{name}-{number}") for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def hand_out[R](self, job: Callable[[], R], then: Callable[[R], None]) -> None:
        """Gives the job to a thread; the deciding thread then calls ``then`` with its result."""
        self._results.expect()
        self._jobs.put((job, then))  # type: ignore[arg-type]  # a job and its `then` fit each other

    def close(self) -> None:
        """Drops the jobs that have not started, and returns when the others are done."""
        while True:
            try:
                self._jobs.get_nowait()
            except Empty:
                break
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (handed_out := self._jobs.get()) is not None:
            job, then = handed_out
            try:
                self._results.put(functools.partial(then, job()))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the deciding thread
                self._results.put(functools.partial(_raise, error))


def _raise(error: BaseException) -> None:
    raise error
