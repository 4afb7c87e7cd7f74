"""The daemon in the process of the test, ended by the signal that ends it elsewhere."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from agent.configured import Configured
from agent.daemon import Daemon


def begun(path: Path) -> asyncio.Task[int]:
    """The run of a daemon with the configuration at `path`; its result is the exit status."""
    return asyncio.create_task(Daemon(Configured(path)).run())


@contextlib.asynccontextmanager
async def running(path: Path) -> AsyncIterator[asyncio.Task[int]]:
    """A daemon that must end with status 0."""
    task = begun(path)
    try:
        yield task
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task == 0
