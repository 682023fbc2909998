"""The engine in one thread, under one seed: the same seed gives the same history, with all its crashes."""
