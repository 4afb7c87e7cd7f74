"""The configuration that `uptime-agent init` writes: small, commented, good as it is.

It names no agent, or two devices that were set up by it would be one to whoever reads their records.
"""

from importlib.resources import files


def sample() -> str:
    """Its text."""
    return files("agent.config").joinpath("sample.yaml").read_text()
