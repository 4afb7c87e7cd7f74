"""What the agent knows about the device it runs on."""
