"""From records to an acknowledged place in Kafka: what waits, when it goes, and how."""
