"""Merging real models that ordinary package registries carry; see README.md beside this file."""
