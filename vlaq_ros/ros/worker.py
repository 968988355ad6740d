"""
One thread that runs inference, fed through a mailbox that holds the newest request only.

Results wait until the executor thread collects them, so that everything a policy node decides and
publishes happens on one thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Request = TypeVar('Request')
Result = TypeVar('Result')


class Worker(Generic[Request, Result]):
    """
    Runs `work` on its own thread.

    Args:
        work: Turns a request into a result; an exception it raises becomes the result.
        notify: Called on the worker thread after every result; it must not block.
        name: Name of the thread.
        begin: Called on the thread before anything else.
        rest_s: How long to rest after the last result [s]; what is submitted meanwhile waits.
    """

    def __init__(
        self,
        work: Callable[[Request], Result],
        notify: Callable[[], None],
        name: str,
        begin: Callable[[], None] = lambda: None,
        rest_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._work = work
        self._notify = notify
        self._begin = begin
        self._rest_s = rest_s
        self._request: Request | None = None
        self._is_working = False
        self._is_closed = False
        self._wake = threading.Condition()
        self._results: deque[tuple[Request, Result | Exception]] = deque()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a request waits or is being worked on."""
        with self._wake:
            return self._is_working or self._request is not None

    def submit(self, request: Request) -> bool:
        """Work on this next; return whether it replaced a request that still waited."""
        with self._wake:
            is_replaced = self._request is not None
            self._request = request
            self._wake.notify()
        return is_replaced

    def withdraw(self) -> bool:
        """Forget the request that still waits; return whether there was one."""
        with self._wake:
            is_waiting, self._request = self._request is not None, None
        return is_waiting

    def collect(self) -> list[tuple[Request, Result | Exception]]:
        """Return the results since the last call, oldest first, with their requests."""
        results = []
        while self._results:
            results.append(self._results.popleft())
        return results

    def close(self, timeout_s: float) -> bool:
        """Drop the waiting request and end the thread; return whether it ended in time."""
        with self._wake:
            self._is_closed = True
            self._request = None
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._begin()
        while (request := self._next()) is not None:
            try:
                result = self._work(request)
            except Exception as error:
                result = error
            self._results.append((request, result))
            with self._wake:
                self._is_working = False
                is_closed = self._is_closed
            if not is_closed:
                self._notify()
                self._rest()

    def _rest(self) -> None:
        rest_s = self._rest_s()
        if rest_s > 0.0:
            with self._wake:
                self._wake.wait_for(lambda: self._is_closed, rest_s)

    def _next(self) -> Request | None:
        with self._wake:
            self._wake.wait_for(lambda: self._is_closed or self._request is not None)
            request, self._request = self._request, None
            self._is_working = request is not None
            return request
