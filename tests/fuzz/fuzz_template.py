"""Chat templates that are likely to compile, and do more than they should."""

from __future__ import annotations

import random

__all__ = ["template"]


def template(rng: random.Random, depth: int = 0) -> str:
    """A template of one to three statements, or the body of one at this depth."""
    return "".join(_statement(rng, depth) for _ in range(rng.choice([1, 1, 2, 3])))


def _count(rng: random.Random) -> int:
    """A number of turns or characters; a large one seldom, since templates may use all of their time."""
    return rng.choice([0, 1, 3, 30, 1000] if rng.random() < 0.93 else [10**5, 10**7, 10**9, -1])


def _expression(rng: random.Random, depth: int = 0) -> str:
    n = _count(rng)
    if depth > 2 or rng.random() < 0.4:
        return rng.choice(
            [
                *("messages", "messages[0]", "messages[0]['content']", "bos_token", "tools", "undefined_name", "'ab'"),
                *("1", "[1, 2]", "{'a': 1}", "none", "messages.0.role", "self", "loop", "caller", "ns.x", "'a' * 1000"),
                str(n),
            ]
        )
    inner = _expression(rng, depth + 1)
    operator = rng.choice(["+", "*", "**", "-", "%", "//", "==", "in", "and"])
    attribute = rng.choice(["__class__", "format(0)", "x", "items()", "upper()", "append(1)", "split()", "mro()"])
    filters = f"""list length join first last sort unique reverse upper trim string tojson e safe pprint escape title
        sum max min random dictsort items urlize striptags int float abs wordcount filesizeformat xmlattr map('upper')
        map(attribute='role') selectattr('role') rejectattr('x') groupby('role') batch({n}) slice({n}) center({n})
        indent({n}) tojson(indent={n}) wordwrap({n}) truncate({n}) round({n}) replace('a','aa') default('x') format(1)
        join('{"x" * min(30, abs(n))}') replace('','aa') attr('__class__') count timed"""
    return rng.choice(
        [
            *[f"({inner}) | {rng.choice(filters.split())}"] * 6,
            f"({inner}) ~ ({_expression(rng, depth + 1)})",
            f"({inner}) {operator} ({_expression(rng, depth + 1)})",
            f"range({n}) | list",
            f"lipsum(n={min(n, 1000)})",
            f"({inner}).{attribute}",
            f"({inner})[{rng.choice(['0', '-1', ':2', '::-1', repr('role'), '0:99:0'])}]",
            f"'{{0.__class__}}{{:>{n}}}'.format({inner}, 1)",
            f"('%{n}d' % 1)",
            f"strftime_now('{'%Y' * min(n, 100)}')",
            f"dict(a={inner})",
            f"cycler({inner}).next()",
            f"raise_exception({inner})",
            f"({inner}) if ({_expression(rng, depth + 1)}) else none",
            f"({inner}) is {rng.choice(['defined', 'string', 'mapping', 'iterable', 'none', 'divisibleby(0)', 'x'])}",
            f"'{rng.choice(['a', 'x y'])}'.{rng.choice(['ljust', 'zfill', 'center'])}({n})",
        ]
    )


def _statement(rng: random.Random, depth: int) -> str:
    inner = template(rng, depth + 1) if depth < 3 else "x"
    value = _expression(rng)
    doubled = "{% set ns = namespace(x='ab') %}{% for i in range(" + str(rng.choice([3, 8, 16])) + ") %}"
    return rng.choice(
        [
            *[f"{{{{ {value} }}}}"] * 4,
            f"{{% for m in {value} %}}{inner}{{% endfor %}}",
            f"{{% for m in messages recursive %}}{inner}{{{{ loop(messages) if loop.depth < 9 }}}}{{% endfor %}}",
            f"{{% for i in range({_count(rng)}) %}}{{{{ i }}}}{{% endfor %}}",
            f"{{% if {value} %}}{inner}{{% else %}}-{{% endif %}}",
            f"{{% set ns = namespace(x={value}) %}}{{% set ns.x = {_expression(rng)} %}}{inner}",
            doubled + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
            f"{{% macro f(a) %}}{inner}{rng.choice(['', '{{ f(a) }}'])}{{% endmacro %}}{{{{ f(1) }}}}",
            f"{{% set x = {value} %}}{inner}{{{{ x }}}}",
            f"{{% filter upper %}}{inner}{{% endfilter %}}",
            f"{{% generation %}}{inner}{{% endgeneration %}}",
            f"{{% call(x) f() %}}{inner}{{% endcall %}}",
            rng.choice(
                ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'os' as os %}", "{% block a %}x{% endblock %}"]
            ),
            rng.choice(
                ["{{", "{%", "{# ", "{% endfor %}", "{% raw %}{{x", "\ud800", "\0", "{{ '" + "a" * 5000 + "' }}"]
            ),
            "{% if 1 %}" * rng.choice([5, 60, 300]) + "x",
            f"{{{{ {'(' * n}1{')' * n} }}}}" if (n := rng.choice([5, 80, 2000])) else "",
            f"{{% for a in messages %}}{{% if a %}}{{% break %}}{{% endif %}}{inner}{{% endfor %}}",
        ]
    )
