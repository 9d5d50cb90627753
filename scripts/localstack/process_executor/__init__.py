"""LocalStack's Lambda functions as processes of the host, with their layers, without Docker.

`plugin` and `server` import LocalStack. `environment`, `process` and `runtime_api` need the standard library only; so
does `bootstrap`, which is never imported here: it runs under the functions' own interpreter.
"""
