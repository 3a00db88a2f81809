"""Options that several commands of the command line share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["StoreOption"]

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="STRATA_STORE",
        help="Where results lie: a folder, `s3://…` or `gs://…`.",
        show_default=".strata",
    ),
]
