"""Damaged files and odd arguments: no crash, no hang, and only the errors that are documented. See ``__main__``."""
