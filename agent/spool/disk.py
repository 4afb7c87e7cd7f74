"""The one thread on which everything that touches the disk happens: a slow SD card must never stop the loop."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Disk:
    """Runs calls in order. To be made on the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Bounded by its caller, who has one call under way at a time.
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon thread: a disk that does not answer must not keep the process from ending.
        threading.Thread(target=self._run, name="spool", daemon=True).start()

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """The future result of `function`, called on the thread."""
        future: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 whoever awaits the future gets it
                self._answer(_set_exception, future, error)
            else:
                self._answer(_set_result, future, result)

        self._calls.put(job)
        return future

    def end(self) -> None:
        """After what was called, the thread ends."""
        self._calls.put(None)

    def _run(self) -> None:
        while (job := self._calls.get()) is not None:
            job()

    def _answer(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # The loop did not wait for a disk that hung, and nobody is there to be told.


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.cancelled():
        future.set_result(result)


def _set_exception(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.cancelled():
        future.set_exception(error)
