"""Random expressions of chat templates, and the variables in them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

VARIABLES: dict[str, Any] = {
    "s": "Hello wörld, ",
    "t": " a,b  c\n\tD'\"e ",
    "e": "",
    "n": 3,
    "neg": -7,
    "f": 2.5,
    "big": 10**17,
    "yes": True,
    "nil": None,
    "l": [3, 1, 2],
    "ls": ["b", "A", "c", "É"],
    "m": [],
    "d": {"k": "v", "items": [1], "x": {"y": [None, 1.5, "ß"]}},
    "ds": [{"name": "b", "v": 2}, {"name": "A", "v": 1, "q": None}, {"name": "c"}],
}

_ATOMS = [
    *VARIABLES,
    *("undef", "true", "none", "false", "[]", "{}", "()", "range(4)", "dict(a=1)"),
    *("'a'", "'lo'", '"it\'s"', "''", "','", "'\\n'", "'ß'", "'k'", "'items'", "'12'", "'1.5e3'", "'ΣΑΣ Σ'"),
    *("0", "1", "2", "3", "10", "0.5", "1e3", "7", "1_000"),
]
_FILTERS = [
    *("trim", "upper", "lower", "title", "capitalize", "length", "first", "last", "list", "join", "join(', ')"),
    *("tojson", "tojson(indent=2)", "tojson(sort_keys=true)", "tojson(separators=(',', ':'))", "tojson(true)"),
    *("string", "int", "float", "default('d')", "default('d', true)", "reverse | list", "sort", "sort(reverse=true)"),
    *("unique | list", "abs", "round", "round(1)", "round(2, 'floor')", "sum", "min", "max", "items | list"),
    *("dictsort", "map('upper') | list", "map(attribute='name') | list", "map(attribute='v', default=9) | list"),
    *("selectattr('v') | list", "selectattr('name', 'equalto', 'b') | list", "rejectattr('v', 'defined') | list"),
    *("select('string') | list", "reject('none') | list", "select | list", "batch(2, 'x') | list", "slice(2) | list"),
    *("replace('l', 'LL')", "replace('a', '', 1)", "indent", "indent(2, true)", "center(20)", "sort(attribute='name')"),
]
_TESTS = [
    *("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "iterable"),
    *("sequence", "callable", "true", "false", "odd", "even", "divisibleby(2)", "divisibleby 3", "in [1, 'a', none]"),
    *("eq 1", "equalto('a')", "gt 1", "lower", "upper", "sameas none", "not none", "not defined", "ne 2", "lessthan 2"),
]
_PARTS = [
    *(".upper()", ".strip()", ".split()", ".split(',', 1)", ".rsplit(none, 1)", ".startswith('H')"),
    *(".endswith(('x', ' '))", ".replace('l', '1')", ".items() | list", ".keys() | list", ".get('k')", ".get('z', 5)"),
    *(".k", ".x.y", ".items", "['k']", "[0]", "[-1]", "[1:]", "[::-1]", "[:2]", "[-2:]", "[1:3]", "[5]", ".index(1)"),
    *(
        ".count('l')",
        ".find('o')",
        ".title()",
        ".capitalize()",
        ".isdigit()",
        ".isupper()",
        ".lstrip()",
        ".rstrip(', ')",
    ),
    *(".join(ls)", ".partition(',')", ".rfind('l')", ".zfill(5)", ".center(9, '*')", ".splitlines()", ".rjust(4)"),
    *(".swapcase()", ".removeprefix('He')", ".isalpha()", ".expandtabs(4)", "[n]", "['x']['y'][2]", "[0].name", ".0"),
]
_SIGNS = [
    *("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"),
]


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    choice = st.sampled_from
    return st.one_of(
        st.builds("({} {} {})".format, inner, choice(_SIGNS), inner),
        st.builds("{} {} {}".format, inner, choice(_SIGNS), inner),
        st.builds("{} | {}".format, inner, choice(_FILTERS)),
        st.builds("({}) | {}".format, inner, choice(_FILTERS)),
        st.builds("{} is {}".format, inner, choice(_TESTS)),
        st.builds("({}){}".format, inner, choice(_PARTS)),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("({} if {})".format, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{'q': {}, 'r': {}}}".format, inner, inner),
        st.builds("{} {}".format, choice(["not", "-", "+"]), inner),
    )


EXPRESSIONS = st.recursive(
    st.builds("{}{}".format, st.sampled_from(_ATOMS), st.sampled_from(["", *_PARTS])), _larger, max_leaves=8
)
