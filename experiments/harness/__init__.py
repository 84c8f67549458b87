"""How studies run: catalogue, runner, results, resuming, statistics, plots, timing."""
