"""`python -m flows` is `strata`."""

from flows.keeper import main

main()
