"""How a check finds the mistake: the machinery behind every check of this package.

A check knows the right answer (its oracle) and a list of wrong functions, each a mistake that
learners make, with its diagnosis. It runs the learner's function on fixed inputs. Where the
result is not the oracle's, it is compared with that of each wrong function.
"""

import difflib
import dis
import inspect
import linecache
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import noise
from ..errors import UserError

Case = tuple[Any, ...]  # the arguments of one call


class CheckFailed(AssertionError):
    """A function is wrong. The message names the mistake and shows one pair of numbers.

    Attributes:
        diagnosis: the mistake, in one or two sentences.
    """

    def __init__(self, check: str, diagnosis: str, example: str = "") -> None:
        self.diagnosis = diagnosis
        lines = [f"{check}: {diagnosis}"]
        if example:
            lines.append(f"  {example}")
        lines.append(f'  Stuck? checks.hint("{check}")')
        super().__init__("\n".join(lines))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback through the engine."""
        return str(self).splitlines()


class Mistake(NamedTuple):
    """A wrong function that people write, and what to tell them.

    Attributes:
        diagnosis: names the mistake, not the solution.
        wrong: takes what the learner's function takes.
    """

    diagnosis: str
    wrong: Callable[..., Any]


def call(f: Callable[..., Any], *arguments: Any) -> Any:
    """The plain way to try a function: call it."""
    return f(*arguments)


# Every check by its name.
CHECKS: dict[str, "Check"] = {}
_hints_given: dict[str, int] = {}


@dataclass(frozen=True, eq=False, repr=False)
class Check:
    """Call it with a function of yours: it says that it is right, or what is wrong with it.

    Attributes:
        signature: name and parameters, such as "snr(alpha_bar)". Parameters are passed by
            position, so their names are free.
        task: what the function must return.
        oracle: the right function, made of the library's own.
        cases: makes the arguments of each call, anew and alike every time.
        mistakes: the wrong functions that are recognised.
        hints: a hint, a bigger one, and the solution as code.
        verified: what a pass means, for the line that is printed.
        results: names of the numbers that come back; more than one for a tuple.
        measure: `measure(f, *case)` calls f and returns the numbers to compare.
        may_change: positions of arguments that the function may change in place.
        rtol: how far off a right answer may be, in relation; float32 must pass.
        atol: the same, as a difference.
    """

    signature: str
    task: str
    oracle: Callable[..., Any]
    cases: Callable[[], Sequence[Case]]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, str, str]
    verified: str
    results: tuple[str, ...] = ("result",)
    measure: Callable[..., Any] = call
    may_change: tuple[int, ...] = ()
    rtol: float = 1e-4
    atol: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", f"{self.task}\n\nWritten as {self.signature}.")
        CHECKS[self.name] = self

    @property
    def name(self) -> str:
        """The function's name, which is also the check's."""
        return self.signature.partition("(")[0]

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters."""
        return self.signature.partition("(")[2].rstrip(")").split(", ")

    def __repr__(self) -> str:
        return f"checks.{self.signature}"

    def __call__(self, f: Callable[..., Any]) -> None:
        """Check a function and print one line where it is right, or not written yet.

        Raises:
            CheckFailed: it is wrong; the message names the mistake.
        """
        self._refuse_what_cannot_be_called(f)
        if _is_stub(f):
            return self._not_written()
        with _randomness_restored() as drew:
            yours = _run(self, f)
            random_numbers = drew()
            if _unfinished(yours):
                return self._not_written()
            expected = _known(self, self.oracle)
            wrong = self._first_difference(yours.outcomes, expected)
            if wrong is not None:
                example = _example(self, yours.outcomes, expected, wrong)
                raise CheckFailed(
                    self.name, self._diagnose(f, yours, expected, wrong, random_numbers), example
                )
            if yours.changed:
                raise CheckFailed(self.name, _changed(yours.changed))
            if not _repeats(self, f, yours):
                raise CheckFailed(self.name, _NOT_REPEATABLE)
        print(f"{self.name} is right: {self.verified}")
        return None

    def _not_written(self) -> None:
        print(f'{self.name}: not written yet. For help: checks.hint("{self.name}")')

    def _refuse_what_cannot_be_called(self, f: object) -> None:
        if not callable(f):
            raise CheckFailed(
                self.name,
                f"this is a {type(f).__name__}, not a function. Pass the function itself, without "
                f"calling it: checks.{self.name}(my_function).",
            )
        try:
            inspect.signature(f).bind(*self.cases()[0])
        except TypeError:
            raise CheckFailed(
                self.name,
                f"the parameters don't fit. The function is called as {self.signature}, with "
                f"{len(self.parameters)} values in this order; the names are free.",
            ) from None
        except ValueError:  # something built in, which tells no signature
            pass

    def _first_difference(
        self, yours: "list[Outcome]", expected: "list[Outcome]"
    ) -> tuple[int, int] | None:
        """(case, result) of the first difference, by result and then by case; None if equal."""
        for result in range(len(self.results)):
            for case in range(len(expected)):
                if not self._alike(yours[case], expected[case], result):
                    return case, result
        return None

    def _alike(self, a: "Outcome", b: "Outcome", result: int) -> bool:
        """Whether two calls agree in one of their results; errors agree where their text does."""
        if isinstance(a, Exception) or isinstance(b, Exception):
            # Sorted: "a (3) must match b (5)" and "a (5) must match b (3)" are one mistake.
            return type(a) is type(b) and sorted(str(a).split()) == sorted(str(b).split())
        if a is None or b is None or len(a) != len(self.results) or len(b) != len(self.results):
            return False
        x, y = (v if v.is_complex() else v.double() for v in (a[result], b[result]))
        if x.is_complex() != y.is_complex():
            return False
        if x.numel() == y.numel() == 1:
            x, y = x.reshape(()), y.reshape(())
        return x.shape == y.shape and bool(
            torch.isclose(x, y, rtol=self.rtol, atol=self.atol, equal_nan=True).all()
        )

    def _mistake_of(self, yours: "list[Outcome]", result: int) -> Mistake | None:
        """The known mistake whose function gives the same results, up to this one; or None."""
        for mistake in self.mistakes:
            theirs = _known(self, mistake.wrong)
            pairs = list(zip(yours, theirs, strict=True))
            if all(self._alike(a, b, r) for a, b in pairs for r in range(result + 1)):
                return mistake
        return None

    def _partly(self, yours: "list[Outcome]", expected: "list[Outcome]", result: int) -> str | None:
        """The known mistake that explains most of what is wrong, if it is more than chance."""

        def differ(a: "list[Outcome]", b: "list[Outcome]") -> list[bool]:
            return [not self._alike(x, y, result) for x, y in zip(a, b, strict=True)]

        wrong = differ(yours, expected)
        best, explained = None, 0
        for mistake in self.mistakes:
            theirs = _known(self, mistake.wrong)
            matches = [
                bad and not other for bad, other in zip(wrong, differ(yours, theirs), strict=True)
            ]
            if sum(matches) > explained:
                best, explained = mistake, sum(matches)
        if best is None or explained < 2 or 2 * explained <= sum(wrong):
            return None
        failed = f"the {sum(wrong)} trials that went wrong"
        return f"{best.diagnosis} (This explains {explained} of {failed}.)"

    def _diagnose(
        self,
        f: Callable[..., Any],
        yours: "Run",
        expected: "list[Outcome]",
        at: tuple[int, int],
        drew: bool,
    ) -> str:
        case, result = at
        known = self._mistake_of(yours.outcomes, result)
        if known is not None:
            return known.diagnosis
        partly = self._partly(yours.outcomes, expected, result)
        if partly is not None:
            return partly
        outcome, right = yours.outcomes[case], expected[case]
        if isinstance(outcome, Exception):
            return _raised(f, outcome)
        if outcome is None:
            return "your function returns nothing. Is the `return` missing?"
        assert not isinstance(right, Exception) and right is not None
        if len(outcome) != len(right):
            names = " and ".join(f"the {name}" for name in self.results)
            return (
                f"{_count(len(outcome))} came back where {_count(len(right))} should: return "
                f"{names}."
            )
        if drew:
            return (
                "your function draws random numbers of its own. All that it needs is passed to it, "
                "so that equal input gives equal output."
            )
        if yours.changed:
            return _changed(yours.changed)
        if not _repeats(self, f, yours):
            return _NOT_REPEATABLE
        which = f"the {self.results[result]}" if len(self.results) > 1 else "your result"
        return (
            _wrong_form(which, outcome[result], right[result])
            or self._ignored(f, yours, result)
            or _pattern(which, outcome[result], right[result])
            or f"{which} is wrong, and by no mistake that is known here. Go through the formula "
            "term by term: signs, roots, indices, and the units of each factor."
        )

    def _ignored(self, f: Callable[..., Any], yours: "Run", result: int) -> str | None:
        """A sentence about a parameter that has no influence, where it should have one."""
        for i, name in enumerate(self.parameters):

            def other(case: Case, i: int = i) -> Case:
                return (*case[:i], _another(case[i]), *case[i + 1 :])

            moved, theirs = _run(self, self.oracle, other).outcomes, _run(self, f, other).outcomes
            matters = any(
                not isinstance(a, Exception) and not self._alike(a, b, result)
                for a, b in zip(moved, _known(self, self.oracle), strict=True)
            )
            same = all(
                self._alike(a, b, result) for a, b in zip(theirs, yours.outcomes, strict=True)
            )
            if matters and same:
                return f"your result does not depend on `{name}` (parameter {i + 1}), but it must."
        return None


Outcome = tuple[Tensor, ...] | Exception | None  # what one call led to


class Run(NamedTuple):
    """What a function did on all cases.

    Attributes:
        outcomes: one for each case.
        changed: names of the arguments that it changed in place.
    """

    outcomes: list[Outcome]
    changed: list[str]


def _run(
    check: Check,
    f: Callable[..., Any],
    change: Callable[[Case], Case] = lambda case: case,
    backwards: bool = False,
) -> Run:
    cases = [change(case) for case in check.cases()]
    order = list(range(len(cases)))
    outcomes: list[Outcome] = [None] * len(cases)
    changed: dict[str, None] = {}
    for i in reversed(order) if backwards else order:
        before = [v.clone() if isinstance(v, Tensor) else None for v in cases[i]]
        try:
            outcomes[i] = _outcome(check.measure(f, *cases[i]), len(check.results))
        except Exception as error:  # whatever it is, it is what this function does
            outcomes[i] = error
        for k, (was, now) in enumerate(zip(before, cases[i], strict=True)):
            if was is not None and k not in check.may_change and not was.equal(now):
                changed[check.parameters[k]] = None
    return Run(outcomes, list(changed))


@cache
def _known(check: Check, f: Callable[..., Any]) -> list[Outcome]:
    """What the oracle or a known wrong function leads to: always the same, so kept."""
    return _run(check, f).outcomes


def _outcome(value: Any, results: int) -> Outcome:
    """Any of the usual forms of a result as tensors; None where there is none."""
    parts = (value,)
    # A row of numbers is one result, also as a tuple; tensors with dimensions are several.
    several = isinstance(value, tuple) and any(getattr(part, "ndim", 0) for part in value)
    if several or (results > 1 and isinstance(value, tuple | list)):
        parts = tuple(value)
    if any(part is None for part in parts):
        return None
    return tuple(_tensor(part) for part in parts)


def _tensor(value: Any) -> Tensor:
    if value is ...:
        raise NotImplementedError
    if isinstance(value, list | tuple):
        value = torch.stack([_tensor(part) for part in value])
    if not isinstance(value, Tensor):
        value = torch.as_tensor(np.asarray(value))
    return value.detach().cpu().clone()


def _is_stub(f: object) -> bool:
    """Whether a function's body is nothing but `...`, `pass` or a docstring."""
    code = getattr(f, "__code__", None)
    if code is None:
        return False
    idle = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "POP_TOP"}
    constants = set(code.co_consts) - {None, ..., getattr(f, "__doc__", None)}
    return not constants and {i.opname for i in dis.get_instructions(code)} <= idle


def _unfinished(run: Run) -> bool:
    """Whether there is still a `...` in what was calculated with, or a NotImplementedError."""
    return any(
        isinstance(o, NotImplementedError) or (isinstance(o, TypeError) and "ellipsis" in str(o))
        for o in run.outcomes
    )


@contextmanager
def _randomness_restored() -> Iterator[Callable[[], bool]]:
    """Puts the global random states back at the end; yields a test of whether they moved."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng([]):
        torch_state = torch.get_rng_state()

        def drew() -> bool:
            now = np.random.get_state()  # noqa: NPY002
            return (
                not torch.equal(torch_state, torch.get_rng_state())
                or now[2:] != numpy_state[2:]
                or not np.array_equal(now[1], numpy_state[1])
                or random.getstate() != python_state
            )

        try:
            yield drew
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _repeats(check: Check, f: Callable[..., Any], first: Run) -> bool:
    again = _run(check, f, backwards=True).outcomes
    results = range(len(check.results))
    return all(
        check._alike(a, b, result)
        for a, b in zip(first.outcomes, again, strict=True)
        for result in results
    )


_NOT_REPEATABLE = (
    "called again with the same input, your function gives another result. It keeps something "
    "between calls (a global variable, a changed list) or draws random numbers."
)


def _changed(names: list[str]) -> str:
    return (
        f"your function changes its input `{names[0]}` in place. Whoever called it still needs the "
        "old values: make a new tensor (`a = a + b`, not `a += b`)."
    )


def _raised(f: Callable[..., Any], error: Exception) -> str:
    """What was raised, and in which line of the learner's."""
    code, where, trace = getattr(f, "__code__", None), "", error.__traceback__
    while trace is not None:
        if code is not None and trace.tb_frame.f_code.co_filename == code.co_filename:
            line = linecache.getline(code.co_filename, trace.tb_lineno).strip()
            where = f" in the line `{line}`" if line else ""
        trace = trace.tb_next
    text = str(error).splitlines()[0] if str(error) else "no message"
    advice = ""
    if isinstance(error, NameError):
        advice = " Have the cells above been run?"
    elif isinstance(error, RuntimeError) and "size of tensor" in text:
        advice = " Two shapes don't broadcast: print the shape of each factor."
    elif isinstance(error, RuntimeError) and "dtype" in text:
        advice = " Make tensors of your own with dtype=x.dtype: the check passes float64."
    elif isinstance(error, RuntimeError) and "same device" in text:
        advice = " The check passes tensors on the CPU: move tables with .to(x.device)."
    return f"your function raises {type(error).__name__}{where}: {text.rstrip('.')}.{advice}"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _count(n: int) -> str:
    return "one value" if n == 1 else f"{n} values"


def _wrong_form(which: str, yours: Tensor, expected: Tensor) -> str | None:
    if yours.shape != expected.shape:
        transposed = yours.ndim == 2 and yours.T.shape == expected.shape
        return f"{which} has shape {tuple(yours.shape)}, it should be {tuple(expected.shape)}." + (
            " Transposed?" if transposed else ""
        )
    if yours.is_complex():
        return f"{which} has the dtype {_dtype(yours)}: complex. Take `.real`, where that is meant."
    if not yours.is_floating_point() and not torch.equal(expected, expected.round()):
        return f"{which} has the dtype {_dtype(yours)}: whole numbers, where fractions are needed."
    if yours.dtype in (torch.float16, torch.bfloat16):
        return f"{which} has the dtype {_dtype(yours)}, which is too coarse here: use float32."
    bad = ~yours.isfinite() & expected.isfinite()
    if bad.any():
        what = "NaN" if yours[bad].isnan().any() else "infinite"
        return (
            f"{which} is {what} in {int(bad.sum())} of {bad.numel()} places: a root or logarithm "
            "of a negative number, or a division by 0."
        )
    return None


def _pattern(which: str, yours: Tensor, expected: Tensor) -> str | None:
    """What two arrays have in common, where it can be said in a sentence."""
    yours, expected = yours.double(), expected.double()

    def alike(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)

    if alike(yours, -expected):
        return f"{which} has the wrong sign everywhere."
    if expected.ndim >= 2 and alike(yours, expected.transpose(-1, -2)):
        return f"{which} holds the right numbers, with the last two dimensions transposed."
    if expected.numel() > 1:
        if expected.ndim and alike(yours, expected.flip(0)):
            return f"{which} holds the right numbers in reverse order."
        big = expected.abs() > 1e-3 * expected.abs().max()
        ratio = yours[big] / expected[big]
        if alike(yours, expected.round()) or alike(yours, expected.trunc()):
            return f"{which} is rounded to whole numbers. An integer dtype, or `//`?"
        if alike(ratio, ratio.mean().expand_as(ratio)) and alike(yours, ratio.mean() * expected):
            return f"{which} is {ratio.mean():.4g} times what it should be, everywhere."
        shift = yours - expected
        if alike(shift, shift.mean().expand_as(shift)):
            return f"{which} is off by {shift.mean():.4g}, everywhere."
    return None


def _example(
    check: Check, yours: list[Outcome], expected: list[Outcome], at: tuple[int, int]
) -> str:
    """One pair of numbers, from the place of the largest difference; "" where there is none."""
    case, result = at
    a, b = yours[case], expected[case]
    if not isinstance(a, tuple) or not isinstance(b, tuple) or len(a) != len(b):
        return ""
    if a[result].shape != b[result].shape or a[result].is_complex():
        return ""
    x, y = a[result].double(), b[result].double()
    place, index = "", 0
    if x.numel() > 1:
        index = int((x - y).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).argmax())
        at_index = np.unravel_index(index, tuple(x.shape))
        place = f" at [{', '.join(str(int(i)) for i in at_index)}]"
    which = f"the {check.results[result]}" if len(check.results) > 1 else "the result"
    given = [
        f"{name} = {value:g}"
        for name, value in zip(check.parameters, check.cases()[case], strict=True)
        if isinstance(value, int | float)
    ]
    where = f" for {', '.join(given)}" if given else ""
    return (
        f"For example, {which}{where}{place}: yours {_number(x.flatten()[index])}, "
        f"expected {_number(y.flatten()[index])}."
    )


def _number(value: Tensor) -> str:
    return f"{float(value):.5g}"


def _another(value: Any) -> Any:
    """A different value of the same kind; the value itself where none is obvious."""
    if isinstance(value, noise.Level):
        return noise.Level(value.noise, value.signal, value.t)
    if isinstance(value, Tensor):
        if value.is_floating_point():
            return 0.9 * value + 0.03
        return value.flip(0) if value.ndim else value
    if isinstance(value, int):
        return max(value - 1, 1)
    return 0.9 * value + 0.03 if isinstance(value, float) else value


def hint(name: str, level: int | None = None) -> None:
    """Print help for a check: first a hint, then a bigger one, then the solution.

    Args:
        name: the check's name, such as "forward_sample".
        level: 1, 2 or 3; None for the next one that has not been shown in this session.

    Raises:
        UserError: an unknown name, or another level.
    """
    if name not in CHECKS:
        near = difflib.get_close_matches(str(name), CHECKS, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else f" There is {', '.join(CHECKS)}."
        raise UserError(f"There is no check {name!r}.{guess}")
    if level is None:
        level = min(_hints_given.get(name, 0) + 1, 3)
        _hints_given[name] = level
    if level not in (1, 2, 3):
        raise UserError(f"Hints have the levels 1, 2 and 3 (the solution), not {level}.")
    title = {1: "Hint", 2: "Bigger hint", 3: "Solution"}[level]
    text = CHECKS[name].hints[level - 1]
    print(f"{title} for {name} ({level} of 3):\n{text}")


@lru_cache(maxsize=1)
def ddpm_schedule() -> noise.DiscreteSchedule:
    """The schedule of the chapters: linear, T = 1000."""
    return noise.linear()


def fixed_normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights for a module in float64, also where it starts with zeros."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data = (0.3 * drawn).double()
    return module.double().eval()
