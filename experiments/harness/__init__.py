"""Running studies: catalogue, runner, results, resuming, statistics, plots, timing."""
