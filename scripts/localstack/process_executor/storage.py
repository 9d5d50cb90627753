"""Keeps LocalStack's S3 objects in its own temporary folder; by default all LocalStacks share one folder."""

import tempfile

from localstack.runtime import hooks


@hooks.on_infra_start()  # type: ignore[untyped-decorator] # LocalStack is not in the development environment
def keep_objects_in_own_folder() -> None:
    """Replaces the folder before the service is first used: a LocalStack that ends would remove another's buckets."""
    from localstack.services.s3 import provider  # noqa: PLC0415 - it takes its time, and plugins are looked for first

    provider.DEFAULT_S3_TMP_DIR = f"{tempfile.gettempdir()}/localstack-s3-storage"
