"""The name under which saved models know their schedules."""

from erl.learners.core.settings import LinearSchedule

__all__ = ["LinearSchedule"]
