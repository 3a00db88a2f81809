"""What Strata starts on this machine, and what a run that was killed has left there.

`owned_folder` is a process's own private folder; `clear_leftovers` ends and removes what belongs to
processes that are dead. How Ray is started here stands in `local_ray`.
"""

from compute.machine.leftovers import clear_leftovers, end_processes, owned_folder

__all__ = ["clear_leftovers", "end_processes", "owned_folder"]
