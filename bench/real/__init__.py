"""Merge real models from ordinary package registries; see README.md in this folder."""
