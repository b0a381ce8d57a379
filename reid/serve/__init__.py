"""Service: a gallery that is searched over HTTP."""
