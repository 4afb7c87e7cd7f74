"""What `./scripts/bench` measures, and whom beside: each measured process alone on one core, all others on the rest."""
