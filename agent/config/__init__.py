"""Configuration: YAML files become immutable, typed data, or every problem at once."""

from agent.config.model import Config
from agent.config.problems import ConfigError

__all__ = ["Config", "ConfigError"]
