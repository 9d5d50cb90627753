"""LocalStack's S3 in its own temporary folder: left alone it keeps objects in one that all LocalStacks share."""

import tempfile

from localstack.runtime import hooks


@hooks.on_infra_start()  # type: ignore[untyped-decorator] # LocalStack is not in the development environment
def keep_objects_in_own_folder() -> None:
    """Before the service is made, which is when it is first asked; one that ends would remove another's buckets."""
    from localstack.services.s3 import provider  # noqa: PLC0415 - it takes its time, and plugins are looked for first

    provider.DEFAULT_S3_TMP_DIR = f"{tempfile.gettempdir()}/localstack-s3-storage"
