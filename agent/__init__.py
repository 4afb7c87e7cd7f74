"""uptime-agent: measures whether websites and services are up, and delivers every result to Kafka.

The way of one result reads downwards: config → schedule → probers → verdict → record → delivery.
"""

__version__ = "0.1.0"
