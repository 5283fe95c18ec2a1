"""`check_adapter`: one call that holds a restorer against its own spec, and says how to mend what does not agree."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pnp_irib.errors import ConfigError
from pnp_irib.restorer import Restorer
from pnp_irib.spec import RestorerSpec
from pnp_irib.testing.checks import CHECKS
from pnp_irib.testing.problem import Problem
from pnp_irib.testing.subject import Subject

__all__ = ["AdapterError", "Problem", "Report", "check_adapter"]

SIZES = tuple(range(1, 66))


@dataclass(frozen=True)
class Report:
    """What `check_adapter` did and found.

    Attributes:
        name: of the restorer.
        problems: what does not agree.
        passed: names of the checks in which nothing was found.
        notes: what could not be checked, and why.
        seconds: of each check.
    """

    name: str
    problems: tuple[Problem, ...]
    passed: tuple[str, ...]
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def __str__(self) -> str:
        count = len(self.problems)
        found = "no problem" if not count else "1 problem" if count == 1 else f"{count} problems"
        lines = [f"{self.name}: {found} in {len(self.seconds)} checks, {sum(self.seconds.values()):.1f} s"]
        lines += [line for problem in self.problems for line in _folded(problem)]
        lines += [f"  not checked: {note}" for note in self.notes]
        return "\n".join(lines)


class AdapterError(AssertionError):
    """A restorer does not keep to the protocol or to its spec; `report` has the problems.

    Attributes:
        report: of all checks.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def check_adapter(restorer: Restorer, *, sizes: Sequence[int] = SIZES, raises: bool = True) -> Report:
    """Exercise a restorer against its own spec.

    Sizes 1 to 65 and scales, values, alignment with the input, batches, seeds, prompts, gradients, dtypes, tiles, errors of
    wrong options, and that nothing of it is changed by use. It is given small pictures only.

    Args:
        restorer: the adapter's object.
        sizes: sides of the pictures, pixels; fewer of them where a picture takes long.
        raises: raise an `AdapterError` where anything is found; else the report is returned in any case.

    Returns:
        The report.

    Raises:
        AdapterError: something was found.

    Example:
        ```python
        def test_it_keeps_to_the_protocol():
            check_adapter(load_restorer("my-restorer"))
        ```
    """
    if wrong := [size for size in sizes if not 1 <= size <= 144]:
        raise ConfigError(f"sizes={wrong[0]}: the kit has pictures of 1 to 144 pixels a side.")
    if isinstance(restorer, type) or not (isinstance(restorer, Restorer) and isinstance(restorer.spec, RestorerSpec)):
        missing = [name for name in ("spec", "restore", "to") if not hasattr(restorer, name)]
        if isinstance(restorer, type):
            missing = [f"an object of it, {restorer.__name__}(...)"]
        fix = f"give it {', '.join(missing)}" if missing else "let its spec be a pnp_irib.RestorerSpec"
        name = restorer.__name__ if isinstance(restorer, type) else type(restorer).__name__
        found = Problem("protocol", f"{name} is no Restorer", f"{fix}; see docs, 'Writing an adapter'")
        report = Report(name, (found,), (), seconds={"protocol": 0.0})
    else:
        report = _checked(Subject(restorer, tuple(sizes)))
    if raises and not report.ok:
        raise AdapterError(report)
    return report


def _checked(subject: Subject) -> Report:
    problems: list[Problem] = []
    passed: list[str] = []
    seconds: dict[str, float] = {}
    for name, check in CHECKS.items():
        began = time.monotonic()
        found = list(_guarded(name, check(subject)))
        seconds[name] = time.monotonic() - began
        problems += found
        if not found:
            passed.append(name)
    return Report(subject.spec.name, tuple(problems), tuple(passed), tuple(subject.notes), seconds)


def _guarded(name: str, found: Iterator[Problem]) -> Iterator[Problem]:
    """What a check finds; an error that it does not expect is a finding as well."""
    try:
        yield from found
    except Exception as error:  # an adapter may raise anything
        said = " ".join(str(error).split())[:300]
        yield Problem(name, f"{type(error).__name__}: {said}", "let it restore any picture that its spec allows")


def _folded(problem: Problem) -> list[str]:
    text = f"{problem.check}: {problem.found}. To mend it: {problem.fix}."
    return textwrap.wrap(text, 80, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
