"""Self-check quizzes that score themselves, in the built page, in Jupyter and in Colab.

The questions of a chapter lie in `quizzes/NAME.toml`. `quiz("NAME")` makes one piece of HTML of
them that needs no kernel and no network. Formulas become MathML, which browsers draw themselves:
Colab shows TeX in outputs raw.
"""

import html
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from string import Template
from typing import Any

from .errors import UserError


@dataclass(frozen=True)
class Option:
    """One answer to choose, or one number that was to be expected.

    Attributes:
        answer: what the reader chooses (text with `code`, *emphasis*, **strong** and $TeX$), or the
            number that the reader may give.
        why: why it is right or wrong.
        right: whether it is the answer.
    """

    answer: str | float
    why: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question with options to choose from or, where `tolerance` is given, a number to find.

    Attributes:
        text: the question.
        options: exactly one of them right.
        tolerance: largest distance of a number from an option that still counts as that option.
        why: of a number that is none of the options.
    """

    text: str
    options: tuple[Option, ...]
    tolerance: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if sum(option.right for option in self.options) != 1 or len(self.options) < 2:
            raise UserError(f"The question {self.text!r} needs several options, one of them right.")
        if (self.tolerance is None) != all(isinstance(o.answer, str) for o in self.options):
            raise UserError(f"The question {self.text!r} mixes texts and numbers.")
        numbers = sorted(o.answer for o in self.options if not isinstance(o.answer, str))
        if any(b - a <= 2 * (self.tolerance or 0) for a, b in pairwise(numbers)):
            raise UserError(f"Two options of the question {self.text!r} can't be told apart.")


def available() -> list[str]:
    """The names of the quizzes."""
    return sorted(file.name[:-5] for file in _folder().iterdir() if file.name.endswith(".toml"))


def questions(name: str) -> list[Question]:
    """The questions of a quiz.

    Raises:
        UserError: an unknown name, or a question without exactly one right answer.
    """
    if name not in available():
        raise UserError(f"There is no quiz {name!r}. There are: {', '.join(available())}.")
    source = tomllib.loads((_folder() / f"{name}.toml").read_text(encoding="utf-8"))
    return [_question(entry) for entry in source["question"]]


def quiz(name: str) -> None:
    """Show a quiz. It counts what was right at the first try, and explains every answer.

    Raises:
        UserError: an unknown name.
    """
    from IPython.display import HTML, display

    display(HTML(to_html(questions(name), name)))


def _folder() -> Any:
    return resources.files("diffusion_lib") / "quizzes"


def _question(entry: dict[str, Any]) -> Question:
    return Question(
        text=entry["text"],
        options=tuple(Option(**option) for option in entry["option"]),
        tolerance=entry.get("tolerance"),
        why=entry.get("why", ""),
    )


def to_html(entries: Sequence[Question], name: str) -> str:
    """The quiz as one piece of HTML; without JavaScript, answers unfold below each question."""
    body = "\n".join(_fieldset(q, i, f"{name}-{i}") for i, q in enumerate(entries, 1))
    page = Template((_folder() / "template.html").read_text(encoding="utf-8"))
    return page.substitute(uid=f"dl-quiz-{html.escape(name)}", body=body, count=len(entries))


def _fieldset(question: Question, number: int, uid: str) -> str:
    answer = next(option for option in question.options if option.right)
    others = [option for option in question.options if not option.right]
    if question.tolerance is None:
        inputs = "\n".join(
            f'<label><input type="radio" name="{uid}" value="{i}"><span>{rich(str(o.answer))}'
            "</span></label>"
            for i, o in enumerate(question.options)
        )
        numbers = ""
    else:
        inputs = (
            f'<label class="dl-number"><span>Your number</span><input type="text" '
            f'inputmode="decimal" name="{uid}" autocomplete="off"></label>'
            '<button type="button">Check</button>'
        )
        known = [[option.answer, question.tolerance] for option in question.options]
        numbers = f" data-numbers='{json.dumps(known)}'"
    told = "".join(
        f'<p data-why="{i}" data-right="{int(o.right)}" hidden>'
        f"<b>{'Right' if o.right else 'Not this one'}.</b> {rich(o.why)}</p>"
        for i, o in enumerate(question.options)
    )
    told += f'<p data-why="-1" data-right="0" hidden><b>Not this one.</b> {rich(question.why)}</p>'
    unfolded = f"<p><b>{rich(str(answer.answer))}</b> {rich(answer.why)}</p><ul>" + "".join(
        f"<li><b>{rich(str(o.answer))}</b> {rich(o.why)}</li>" for o in others
    )
    return (
        f"<fieldset{numbers}><legend><b>{number}.</b> {rich(question.text)}</legend>\n{inputs}\n"
        f'<div class="dl-why" aria-live="polite">{told}</div>\n'
        f"<details><summary>Answer</summary>{unfolded}</ul></details></fieldset>"
    )


# A minus after a bracket, a comma or a relation is a sign, and stands close to its number.
_SIGN = re.compile(r"(<mo[^>]*>(?:\[|&#x00028;|&#x0002C;|&#x0003D;)</mo>)<mo>(&#x02212;|\+)</mo>")


def rich(text: str) -> str:
    """Text with `code`, *emphasis*, **strong** and $TeX$ as HTML with MathML.

    Its TeX stays with each formula: on the book's pages MathJax draws it, like all others there.
    """
    from latex2mathml.converter import convert

    # A stop or comma after a formula is kept with it: it would fall alone onto the next line.
    parts = re.split(r"(\$[^$]+\$[.,:;?!)]?|`[^`]+`)", text.strip())
    return "".join(
        _formula(convert, part[1 : part.rindex("$")], part[part.rindex("$") + 1 :])
        if part.startswith("$")
        else f"<code>{html.escape(part[1:-1])}</code>"
        if part.startswith("`")
        else _emphasis(html.escape(part, quote=False))
        for part in parts
    )


def _formula(convert: Callable[[str], str], tex: str, after: str) -> str:
    mathml = convert(tex).replace("<math ", f'<math data-tex="{html.escape(tex)}" ', 1)
    mathml = _SIGN.sub(r'\1<mo form="prefix">\2</mo>', mathml)
    mathml = re.sub(
        r"(<mi>(?:ln|exp|log)</mi>)(?=<mi|<msub)", r'\1<mspace width="0.17em"/>', mathml
    )
    return f'<span style="white-space:nowrap">{mathml}{after}</span>' if after else mathml


def _emphasis(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", text)
