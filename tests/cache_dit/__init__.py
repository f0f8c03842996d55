"""halfframe beside cache-dit's real code; `make test-cache-dit` puts it there."""
