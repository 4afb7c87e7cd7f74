"""uptime-agent: measures whether websites and services are up, and delivers every result to Kafka.

The way of one result reads downwards: config → schedule → probers → verdict → record → delivery.
"""

import os

__version__ = "0.1.0"

# How the command is called by whoever reads its hints: in a checkout ./scripts/uptime-agent, which is not on the PATH.
CALLED = os.environ.get("UPTIME_AGENT_CALLED", "uptime-agent")
