"""The command line of every script: settings are frozen dataclasses, read from options and files."""
