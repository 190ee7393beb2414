"""Experiments: grids of training configurations, what is asked of each trained model, and their results."""
