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
    left_out: Mapping[str, str] = field(default_factory=dict)
    """For each test file that is left out on this cloud, or test as file.py::name, the reason.

    A test that does not depend on the cloud runs on one of them; these are shared out, so that both take as long.
    """


DIFFERENCES = {
    "localstack": Differences(
        applies_changed_rules=False,  # 4.14.0 takes an update of AWS::Events::Rule and does nothing
        forgets_layers=False,  # it keeps the name of such a layer, and fails to list layers from then on
        left_out={
            "test_demo.py::test_it_shows_a_decision_and_stays_up_until_ctrl_c": (
                "a decision depends on no cloud; the other demo is this one's"
            ),
            "test_stack_lifecycle.py::test_a_bad_parameter_is_named_before_anything_is_made": (
                "it does not check parameters' values"
            ),
            "test_repair.py::test_two_commands_list_a_dead_letter_and_redrive_it": (
                "a removed subscription is the database's matter"
            ),
        },
    ),
    "ministack": Differences(
        reports_the_type_of_an_error=False,  # 1.5.33 calls every exception Runtime.HandlerError
        counts_bytes_of_attributes=False,  # it sizes a message by its body alone
        drops_late_logs=False,  # its last lines make its log group anew, at any time after that
        left_out={
            "test_process_executor.py": "it tests LocalStack's executor, which is ours",
            "test_demo.py::test_once_shows_an_events_timeline_and_leaves_nothing": (
                "what the schedules alone do is seen by the pipeline's tests; the other demo is this one's"
            ),
            "test_secrets.py": "the template alone says where secrets are",
            "test_stack_lifecycle.py::test_deploy_page_commands_reach_the_stack_of_samconfig": (
                "the commands are SAM's and read samconfig.toml"
            ),
            "test_stack_lifecycle.py::test_a_second_stack_leaves_the_first_untouched_and_nothing_behind": (
                "names that could clash are the template's; making anew what an update ignores is for LocalStack"
            ),
        },
    ),
}
