"""The training objective as a sum of named terms."""
