"""python -m pgoutlier.worker.cli"""

from pgoutlier.worker.cli import main

main()
