"""Run one of CPython's own test modules and write what became of each test: `cpython_runner.py MODULE ANSWER [TEST…]`.

It needs nothing but the standard library, since it runs inside a sandbox too. ANSWER becomes a JSON object: the name of
each test with its outcome ("passed", "failed", "error" or "skipped") and the reason in one line.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import unittest
from collections.abc import Iterator

from test import support
from test.support import os_helper

type Reason = tuple[type[BaseException], BaseException, object] | tuple[None, None, None]


class Recorder(unittest.TextTestResult):
    """Remembers the worst that each test, its subtests included, came to."""

    SEVERITY = ("passed", "skipped", "failed", "error")

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.outcomes: dict[str, tuple[str, str]] = {}

    def note(self, test: unittest.TestCase, outcome: str, reason: str = "") -> None:
        before = self.outcomes.get(test.id(), ("passed", ""))
        if self.SEVERITY.index(outcome) >= self.SEVERITY.index(before[0]):
            self.outcomes[test.id()] = outcome, reason

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.note(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.note(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Reason) -> None:
        super().addExpectedFailure(test, err)
        self.note(test, "passed")

    def addFailure(self, test: unittest.TestCase, err: Reason) -> None:
        super().addFailure(test, err)
        self.note(test, "failed", line(err))

    def addError(self, test: unittest.TestCase, err: Reason) -> None:
        super().addError(test, err)
        self.note(test, "error", line(err))

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Reason | None) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            failed = err[0] is not None and issubclass(err[0], test.failureException)
            self.note(test, "failed" if failed else "error", line(err))


def line(err: Reason) -> str:
    return " ".join(f"{getattr(err[0], '__name__', '')}: {err[1]}".split())[:300]


def tests_of(name: str) -> unittest.TestSuite:
    """The tests of a module; some installations lack the few lines that make this one of what is installed."""
    missing = importlib.util.find_spec(f"test.{name}") is None
    if missing and name == "test_multiprocessing_fork":
        from test._test_multiprocessing import install_tests_in_module_dict

        made = sys.modules[f"test.{name}"] = types.ModuleType(f"test.{name}")
        install_tests_in_module_dict(vars(made), "fork")
        return unittest.defaultTestLoader.loadTestsFromModule(made)
    return unittest.defaultTestLoader.loadTestsFromName(f"test.{name}")


def flat(tests: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def main() -> None:
    name, answer, *only = sys.argv[1:]
    support.use_resources = []  # neither the network outside nor much of the processor
    support.verbose = 0
    support.LONG_TIMEOUT = 20.0  # seconds: one test sleeps for so long where it loses a race with itself
    with open(answer, "w") as file, os_helper.temp_cwd(quiet=True):
        try:
            suite = unittest.TestSuite(test for test in flat(tests_of(name)) if not only or test.id() in only)
        except unittest.SkipTest as skipped:
            json.dump({f"test.{name}": ("skipped", str(skipped))}, file)
            return
        result = unittest.TextTestRunner(sys.stderr, verbosity=2, resultclass=Recorder).run(suite)
        assert isinstance(result, Recorder)
        json.dump(result.outcomes, file)


if __name__ == "__main__":
    main()
