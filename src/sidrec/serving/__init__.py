"""A bundle behind HTTP: answers, durable events, live items, hot swap. Extra `serve`."""
