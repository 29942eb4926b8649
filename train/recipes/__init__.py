"""Configurations that are ready to run, as YAML files."""
