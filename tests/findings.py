"""What tests ask of the doctor's findings."""

from __future__ import annotations

from collections.abc import Iterable

from turbowan.turbo_core.doctor.finding import Finding, Surroundings

NOWHERE = Surroundings()


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding
