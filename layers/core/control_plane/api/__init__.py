"""The HTTP API in front of ``ops``: one module per route, built on ``http`` and ``tokens``, which know no route."""
