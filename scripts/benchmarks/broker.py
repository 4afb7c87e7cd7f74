"""The embedded broker in a process of its own, until standard input ends. Prints its address as a line of JSON."""

import json
import sys

from agent.delivery.kafka import EmbeddedBroker

if __name__ == "__main__":
    with EmbeddedBroker() as broker:
        print(json.dumps(broker.address), flush=True)
        sys.stdin.read()
