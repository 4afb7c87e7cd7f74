"""What is doubtful is held, and looked into, until there is a verdict."""
