"""The configuration that `uptime-agent init` writes: small, commented, good as it is."""

from importlib.resources import files


def sample() -> str:
    """Its text."""
    return files("agent.config").joinpath("sample.yaml").read_text()
