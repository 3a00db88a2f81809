"""What Strata starts on this machine, and what a run that was killed has left there."""
