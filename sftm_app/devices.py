"""The devices that a recipe may ask for. Needs no torch, so that `sftm --help` is quick."""

DEVICES = ("auto", "cpu", "cuda", "mps")
