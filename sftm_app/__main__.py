"""python -m sftm_app"""

from sftm_app.cli import run

run()
