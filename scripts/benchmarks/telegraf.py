"""Telegraf with just what is measured in it: built once where Go is present, and its configuration in its best form."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import BenchError

MODULE = "github.com/influxdata/telegraf"
VERSION = "v1.37.0"
TAGS = "custom,inputs.http_response,outputs.kafka,serializers.json"
WAY = "install Go (https://go.dev/doc/install); Telegraf is then built once, which takes some minutes"


def program() -> Path | None:
    """The one that was built, or a `telegraf` of this machine."""
    if (built := _directory() / "telegraf").exists():
        return built
    found = shutil.which("telegraf")
    return Path(found) if found else None


def built() -> Path:
    """Builds it unless it is there. Raises `BenchError`."""
    if (known := program()) is not None:
        return known
    print(f"bench: building Telegraf {VERSION} in {_directory()} (once, some minutes)", file=sys.stderr, flush=True)
    _directory().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_directory()) as temporary:
        # In a copy of the module and with its own go.sum: versions and checksums are Telegraf's, not chosen anew.
        source = Path(temporary) / "source"
        module = json.loads(_go("mod", "download", "-json", f"{MODULE}@{VERSION}", where=temporary))
        shutil.copytree(module["Dir"], source, copy_function=shutil.copyfile)
        target = Path(temporary) / "telegraf"
        _go("build", "-tags", TAGS, "-ldflags", "-s -w", "-o", str(target), "./cmd/telegraf", where=str(source))
        target.rename(_directory() / "telegraf")
    return _directory() / "telegraf"


def _directory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "uptime-agent" / f"telegraf-{VERSION}"


def _go(*arguments: str, where: str) -> str:
    done = subprocess.run(["go", *arguments], cwd=where, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"go {arguments[0]} failed: {done.stderr[-2_000:]}; leave it out with --peers")
    return done.stdout


def config(urls: list[str], interval: float, timeout: float, ca: Path | None, broker: str) -> str:
    """One input for each url with an offset of its own, so that they do not fire together; records as JSON."""
    tls = f"tls_ca = {json.dumps(str(ca))}\n" if ca else ""
    inputs = "".join(
        f"[[inputs.http_response]]\nurls = [{json.dumps(url)}]\nresponse_timeout = {json.dumps(f'{timeout}s')}\n"
        f"collection_offset = {json.dumps(f'{round(interval * number / len(urls) * 1e9)}ns')}\n{tls}"
        for number, url in enumerate(urls)
    )
    brokers = json.dumps(broker.split(","))
    return f"""\
[agent]
interval = "{interval}s"
precision = "1us"
flush_interval = "1s"
metric_batch_size = 5000
metric_buffer_limit = 100000
[global_tags]
location = "here"
[[outputs.kafka]]
brokers = {brokers}
topic = "uptime.results"
compression_codec = 3
required_acks = -1
data_format = "json"
json_timestamp_units = "1us"
{inputs}"""
