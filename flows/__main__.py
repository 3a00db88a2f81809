"""`python -m flows` is `strata`."""

from flows.cli import main

main()
