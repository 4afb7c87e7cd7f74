"""Configuration: YAML files become immutable, typed data, or every problem at once."""

from agent.config.files import DiskFiles, KeptFiles
from agent.config.forms import duration
from agent.config.load import (
    Directories,
    default_state_directory,
    load,
    load_directories,
    load_kafka,
    load_state_directory,
    of_url,
)
from agent.config.model import Config
from agent.config.problems import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "Directories",
    "DiskFiles",
    "KeptFiles",
    "default_state_directory",
    "duration",
    "load",
    "load_directories",
    "load_kafka",
    "load_state_directory",
    "of_url",
]
