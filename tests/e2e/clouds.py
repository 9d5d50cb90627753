"""All differences between each local cloud and AWS that the tests can notice."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Differences:
    """How a cloud behaves; the defaults are AWS's own behaviour."""

    reports_the_type_of_an_error: bool = True
    """Whether an invocation's errorType is the class of the exception."""
    counts_bytes_of_attributes: bool = True
    """Whether SQS counts a message's attributes, too, in its size."""
    applies_changed_rules: bool = True
    """Whether an updated stack's rules have their new schedules."""
    forgets_layers: bool = True
    """Whether a layer is gone with its last version."""
    drops_late_logs: bool = True
    """Whether a function that still ran when its stack was deleted writes nothing afterwards."""
    checks_parameters: bool = True
    """Whether a parameter's value is checked by its AllowedPattern."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """For each test file that is left out on this cloud, the reason."""


DIFFERENCES = {
    "localstack": Differences(
        applies_changed_rules=False,  # 4.14.0 takes an update of AWS::Events::Rule and does nothing
        checks_parameters=False,
        forgets_layers=False,  # it keeps the name of such a layer, and fails to list layers from then on
    ),
    "ministack": Differences(
        reports_the_type_of_an_error=False,  # 1.5.33 calls every exception Runtime.HandlerError
        counts_bytes_of_attributes=False,  # it sizes a message by its body alone
        drops_late_logs=False,  # its last lines make its log group anew, at any time after that
        left_out={"test_process_executor.py": "it tests LocalStack's executor, which is ours"},
    ),
}
