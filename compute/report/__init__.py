"""What is told of a run: its findings, their examples, and what became of earlier concepts.

`gather_findings` collects what the steps have written, and `continue_from` carries the identities
of an earlier version's concepts on. `artifact_files` are the files that a version publishes,
`assumptions` measures what the theory needs, and `atlas_data` and `report_page` make the page.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compute.report.continuity import continue_from
    from compute.report.findings import (
        Findings,
        artifact_files,
        assumptions,
        atlas_data,
        gather_findings,
        report_page,
    )

_HOMES = {
    "Findings": "compute.report.findings",
    "artifact_files": "compute.report.findings",
    "assumptions": "compute.report.findings",
    "atlas_data": "compute.report.findings",
    "continue_from": "compute.report.continuity",
    "gather_findings": "compute.report.findings",
    "report_page": "compute.report.findings",
}

__all__ = [
    "Findings",
    "artifact_files",
    "assumptions",
    "atlas_data",
    "continue_from",
    "gather_findings",
    "report_page",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
