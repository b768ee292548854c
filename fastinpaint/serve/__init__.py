"""The painter: a page for removing things from photographs, and its HTTP API."""
