"""The supported local clouds: each is one file here and one entry in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local_cloud.emulators.external import External
from local_cloud.emulators.localstack import LocalStack
from local_cloud.emulators.ministack import MiniStack

if TYPE_CHECKING:
    from local_cloud.emulators.emulator import Emulator

EMULATORS: dict[str, type[Emulator]] = {emulator.name: emulator for emulator in (LocalStack, MiniStack, External)}
