"""`python -m opengradient_devnet` is `opengradient-devnet`."""

from opengradient_devnet.cli import main

main()
