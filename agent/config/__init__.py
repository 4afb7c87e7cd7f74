"""Configuration: YAML files become immutable, typed data, or every problem at once."""

from agent.config.footprint import Footprint
from agent.config.forms import duration
from agent.config.load import load, load_kafka, load_state_directory, of_url
from agent.config.model import Config
from agent.config.problems import ConfigError

__all__ = ["Config", "ConfigError", "Footprint", "duration", "load", "load_kafka", "load_state_directory", "of_url"]
