"""The devices that can be asked for. Apart from everything that needs torch, so that `sftm --help` is quick."""

DEVICES = ("auto", "cpu", "cuda", "mps")
