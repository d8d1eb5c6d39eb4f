"""This module says what is wrong with a policy's text, in words that help to correct it.

oslo.policy reads a text that it does not understand as `deny`, and says so in the log only. Under a `not`, or in a rule that another one
negates, that opens what was to be closed; so such a text is refused before oslo.policy gets it. The grammar is oslo.policy's.
"""

import re
from collections.abc import Iterator
from typing import Final

NESTING_LIMIT: Final = 100
"""Open parentheses and `not`s around one check; more would exhaust the stack of whoever evaluates it."""
_SHOWN: Final = 60
"""Characters of a text that a message repeats."""
_OPERATORS: Final = ("and", "or")


def quoted(text: object) -> str:
    """Return `text` in quotes for a message: on one line, and not too long."""
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 4]}...{shown[-1]}"


def mistake(rule: object) -> str | None:
    """Say why `rule` cannot be what its author meant, in words that follow its name; None if oslo.policy understands it.

    A rule is a text, or the list of lists of checks of old JSON files (the outer list is joined by "or", the inner ones by "and").
    """
    if isinstance(rule, str):
        return _text_mistake(rule) if rule else None
    if not isinstance(rule, list):
        return f'is {quoted(rule)} and not text: write a check in quotes, such as "role:admin", "@" for everybody or "!" for nobody'
    inner = [check for part in rule for check in (part if isinstance(part, list) else [part])]
    return next((f"has {quoted(check)} in its list, which is no text" for check in inner if not isinstance(check, str)), None) or next(
        filter(None, map(_check_mistake, inner)), None
    )


def _text_mistake(text: str) -> str | None:
    expected, opened, nested = True, 0, 0  # is an operand due; parentheses that are open; `not`s before the next operand
    for word in _words(text):
        lowered = word.lower()
        if word == ")":
            if expected or not opened:
                return f"has a ')' too many or too early in {quoted(text)}"
            opened -= 1
        elif lowered in _OPERATORS:
            if expected:
                return f"has nothing before '{word}' in {quoted(text)}"
            expected = True
        elif not expected:
            return f"has no 'and' or 'or' before {quoted(word)} in {quoted(text)}"
        elif word == "(":
            opened += 1
        elif lowered == "not":
            nested += 1
        elif (wrong := _check_mistake(word)) is not None:
            return wrong
        else:
            expected, nested = False, 0
        if opened + nested > NESTING_LIMIT:
            return f"is nested more than {NESTING_LIMIT} deep: split it into several rules"
    if expected:
        return f"ends where a check is due in {quoted(text)}"
    return f"has a '(' without its ')' in {quoted(text)}" if opened else None


def _words(text: str) -> Iterator[str]:
    """Cut at blanks; parentheses count at the beginning and at the end of a word only, as in %(name)s they belong to it."""
    for token in re.split(r"\s+", text):
        bare = token.lstrip("(")
        yield from "(" * (len(token) - len(bare))
        clean = bare.rstrip(")")
        if clean:
            yield clean
        yield from ")" * (len(bare) - len(clean))


def _check_mistake(check: str) -> str | None:
    if check in {"@", "!"}:
        return None
    if _in_quotes(check):
        return f"has {quoted(check)} in quotes of its own: write the check without them"
    if ":" not in check:
        name = check.strip("()") or "NAME"
        return f"has {quoted(check)}, which is no check: write KIND:VALUE, such as role:{name} or rule:{name}"
    return None


def _in_quotes(word: str) -> bool:
    return len(word) >= 2 and word[0] in "'\"" and word[0] == word[-1]
