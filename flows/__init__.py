"""What runs and when: flows, recipes, deployments and the `strata` command line."""
