"""The HTTP API: a FastAPI router over the client. Made by `App.router`."""
