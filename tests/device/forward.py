"""Passes TCP connections on, also from within a device: Kafka listens on 127.0.0.1 alone and names no other address."""

import asyncio
import contextlib
import ctypes
import os
import threading
from concurrent.futures import Future
from pathlib import Path

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
LIBC = ctypes.CDLL(None, use_errno=True)


class Forward:
    """From the address `listen` to the address `to`, while it is open; both as seen in `namespace` (None: ours).

    Closed, with all of its connections; who connects then is refused.
    """

    def __init__(self, listen: tuple[str, int], to: tuple[str, int], namespace: Path | None = None) -> None:
        self._listen, self._to, self._namespace = listen, to, namespace
        self._thread: threading.Thread | None = None
        self.open()

    def open(self) -> None:
        """Listens again, after `close`."""
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        self._loop, self._closed = started.result(30)

    def close(self) -> None:
        """As often as one likes."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join()
            self._thread = None

    def _run(self, started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]") -> None:
        """A thread of its own, as a network namespace is a thread's (setns(2))."""
        try:
            if self._namespace is not None:
                with self._namespace.open() as namespace:
                    if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            asyncio.run(self._serve(started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            raise

    async def _serve(self, started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]") -> None:
        closed = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._pass_on(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(take, *self._listen)
        started.set_result((asyncio.get_running_loop(), closed))
        await closed.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with contextlib.suppress(OSError):
                there, onward = await asyncio.open_connection(*self._to)
                writers.append(onward)
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(reader, onward))
                    both.create_task(_copy(there, writer))
        finally:
            for each in writers:
                each.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
