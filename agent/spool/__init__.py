"""The queue on disk: what was measured stays here until Kafka has acknowledged it."""
