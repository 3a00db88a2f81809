"""What runs and when: flows, recipes, deployments and the `strata` command line."""

import os

# Every entry point imports this package first, so no library reports home unless told to,
# and every worker inherits what stands here.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # The default of 20 seconds is too short for a first start on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Threads that wait spin unless told, and on a machine that others use too, they spin in the
    # place of the one that is waited for: a step of training took ten times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_name, _value)
