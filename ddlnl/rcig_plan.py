"""How a profile runs RCIG."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ddlnl.rcig_evaluation import Protocol, published_protocol
from ddlnl.rcig_settings import Settings, published


@dataclass(frozen=True)
class Plan:
    """settings: (IPC, settings) pairs, of which a cell takes that of the largest IPC not above its own; None takes the
    published ones, which are the same for every noise. student: how students are trained; None takes the published way.
    """

    settings: tuple[tuple[int, Settings], ...] | None = None
    student: Protocol | None = None

    def settings_for(self, dataset: str, noise: str, ipc: int) -> Settings:
        """The settings of a cell; raises `InputError` where nothing is published for it."""
        if self.settings is None:
            return published(dataset, noise, ipc)
        return max(((size, one) for size, one in self.settings if size <= ipc), key=lambda pair: pair[0])[1]

    def student_for(self, dataset: str, ipc: int) -> Protocol:
        """How students of a cell are trained; raises `InputError` where nothing is published for it."""
        return published_protocol(dataset, ipc) if self.student is None else self.student

    def fitted(self, depth: int, mirror: bool) -> Plan:
        """The plan for images that need networks of that depth; without `mirror` nothing is mirrored.

        What is published holds for one dataset and is left as it is.
        """
        table, student = self.settings, self.student
        settings = table and tuple(
            (size, replace(one, depth=depth, mirror=one.mirror and mirror)) for size, one in table
        )
        if student:
            kept = [name for name in student.augmentation.split("_") if mirror or name != "flip"]
            both = student.mirror and mirror
            student = replace(student, depth=depth, mirror=both, augmentation="_".join(kept))
        return replace(self, settings=settings, student=student)
