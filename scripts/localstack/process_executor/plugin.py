"""LocalStack's side: the plugin that it finds by entry point, and the runtime executor that the plugin provides."""

import functools
import os
import subprocess
from pathlib import Path
from typing import override

from localstack.config import GATEWAY_LISTEN, LAMBDA_RUNTIME_ENVIRONMENT_TIMEOUT
from localstack.services.lambda_.invocation.lambda_models import FunctionVersion, InvocationResult
from localstack.services.lambda_.invocation.plugins import RuntimeExecutorPlugin
from localstack.services.lambda_.invocation.runtime_executor import LambdaRuntimeException, RuntimeExecutor

from process_executor.environment import ExecutionEnvironment
from process_executor.process import FunctionSpec, function_environment

INTERPRETER = "ACP_LAMBDA_PYTHON"
"""The variable with the functions' interpreter: absolute, with what Lambda's runtime holds (boto3) and nothing else."""


class ProcessExecutorPlugin(RuntimeExecutorPlugin):  # type: ignore[misc] # LocalStack is not in the development environment
    """The plugin that LAMBDA_RUNTIME_EXECUTOR=process selects."""

    name = "process"

    @override
    def load(self, *_args: object, **_kwargs: object) -> type[RuntimeExecutor]:
        return ProcessRuntimeExecutor


class ProcessRuntimeExecutor(RuntimeExecutor):  # type: ignore[misc] # as above
    """Runs the invocations of one of LocalStack's execution environments, one at a time."""

    def __init__(self, id: str, function_version: FunctionVersion) -> None:  # noqa: A002 - LocalStack's name
        super().__init__(id, function_version)
        self._environment: ExecutionEnvironment | None = None
        self._last_log = ""

    @override
    def start(self, env_vars: dict[str, object]) -> None:
        function = self.function_version.config
        spec = FunctionSpec(
            python=_interpreter(),
            handler=function.handler,
            code=function.code.get_unzipped_code_location(),
            layers=tuple(layer.code.get_unzipped_code_location() for layer in function.layers),
            environment=function_environment(
                env_vars, declared=function.environment or {}, endpoint_url=_endpoint_url(), runtime=function.runtime
            ),
            timeout_s=function.timeout,
            memory_mb=function.memory_size,
        )
        # This limit comes before LocalStack's own, which would leave neither an answer nor a log.
        init_timeout_s = max(1, LAMBDA_RUNTIME_ENVIRONMENT_TIMEOUT - 1)
        self._environment = ExecutionEnvironment(spec, init_timeout_s=init_timeout_s)
        self._environment.start()

    @override
    def stop(self) -> None:
        if self._environment:
            self._environment.stop()

    @override
    def invoke(self, payload: dict[str, str]) -> InvocationResult:
        assert self._environment, "LocalStack starts an executor before it invokes it"
        request_id = payload["invoke-id"]
        outcome = self._environment.invoke(
            request_id,
            payload["payload"].encode(),
            function_arn=payload["invoked-function-arn"],
            trace_id=payload["trace-id"],
        )
        self._last_log = outcome.log
        return InvocationResult(request_id, outcome.payload, is_error=outcome.is_error, logs=outcome.log)

    @override
    def get_logs(self) -> str:
        return self._last_log

    @override
    def get_address(self) -> str:
        return "127.0.0.1"

    @override
    def get_endpoint_from_executor(self) -> str:
        return _gateway_host()

    @override
    def get_runtime_endpoint(self) -> str:
        return ""  # It is used by LocalStack's own runtime init, which runs in its containers only.

    @override
    @classmethod
    def prepare_version(cls, function_version: FunctionVersion) -> None:
        """Unpacks code and layers.

        Raises LambdaRuntimeException, which LocalStack shows as the function's state reason.
        """
        function = function_version.config
        if function.package_type != "Zip":
            raise LambdaRuntimeException("the process executor runs functions of package type Zip only")
        version = _python_version(_interpreter())
        if function.runtime != version:
            raise LambdaRuntimeException(f"{INTERPRETER} is {version}; this function asks for {function.runtime}")
        function.code.prepare_for_execution()
        for layer in function.layers:
            if layer.code is None:
                raise LambdaRuntimeException(f"layer {layer.layer_version_arn} is not in this LocalStack")
            layer.code.prepare_for_execution()

    @override
    @classmethod
    def cleanup_version(cls, function_version: FunctionVersion) -> None:
        """Does nothing, because LocalStack itself removes the unpacked code."""

    @override
    @classmethod
    def validate_environment(cls) -> bool:
        """Whether there is an interpreter. Raises LambdaRuntimeException, so that LocalStack's log says what to set."""
        _python_version(_interpreter())
        return True


def _gateway_host() -> str:
    host: str = GATEWAY_LISTEN[0].host
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - compared, not bound to


def _endpoint_url() -> str:
    return f"http://{_gateway_host()}:{GATEWAY_LISTEN[0].port}"


def _interpreter() -> Path:
    path = Path(os.environ.get(INTERPRETER, ""))
    if not (path.is_absolute() and os.access(path, os.X_OK)):
        raise LambdaRuntimeException(f"{INTERPRETER} must be the absolute path of a Python interpreter, not '{path}'")
    return path


@functools.cache
def _python_version(interpreter: Path) -> str:
    """Returns the interpreter's version as Lambda writes it, such as "python3.13"."""
    code = "import sys; print(f'python{sys.version_info.major}.{sys.version_info.minor}')"
    return subprocess.run([interpreter, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()
