"""python -m sftm_app"""

from sftm_app.cli import main

main()
