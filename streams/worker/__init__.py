"""One worker process: the Faust application, its HTTP server and its metrics."""
