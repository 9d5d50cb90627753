"""In what each local cloud differs from AWS, as far as the tests can tell: all of it, in this one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Differences:
    """AWS's own behaviour by default."""

    reports_the_type_of_an_error: bool = True
    """Whether an invocation's errorType is the exception's class."""
    counts_bytes_of_attributes: bool = True
    """Whether SQS sizes a message by its body and its attributes."""
    moves_messages: bool = True
    """Whether SQS has StartMessageMoveTask."""
    applies_changed_rules: bool = True
    """Whether an updated stack's rules have their new schedules."""
    forgets_layers: bool = True
    """Whether a layer is gone with its last version."""
    drops_late_logs: bool = True
    """Whether a function that still ran when its stack was deleted writes nothing afterwards."""
    checks_parameters: bool = True
    """Whether a parameter's value is held to its AllowedPattern."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """By test file, why it does not concern this cloud."""


DIFFERENCES = {
    "localstack": Differences(
        applies_changed_rules=False,  # 4.14.0 takes an update of AWS::Events::Rule and does nothing
        checks_parameters=False,
        forgets_layers=False,  # it keeps the name of such a layer, and fails to list layers from then on
    ),
    "ministack": Differences(
        reports_the_type_of_an_error=False,  # 1.5.33 calls every exception Runtime.HandlerError
        counts_bytes_of_attributes=False,  # it sizes a message by its body alone
        moves_messages=False,  # it answers InvalidAction
        drops_late_logs=False,  # its last lines make its log group anew, at any time after that
        left_out={"test_process_executor.py": "it tests LocalStack's executor, which is ours"},
    ),
}
