"""How good a model is: holes, baselines, metrics with their definitions, intervals, reports."""
