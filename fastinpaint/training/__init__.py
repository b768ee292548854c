"""Training: options, the update of both networks, and the loop around it."""
