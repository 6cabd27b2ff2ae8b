"""Chat templates, chats and the files of tokenizers with which every runtime is tested."""

from __future__ import annotations

from typing import Any

LLAMA4 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|header_start|>' + ('ipython' if message['role'] == 'tool' else message['role']) + '<|header_end|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}
                {{- part['text'] }}
            {%- else %}
                {{- raise_exception('only text here') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if message.tool_calls is defined %}
        {{- message.tool_calls | tojson(indent=4) }}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if tools is not none %}
    {{- tools | tojson }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|header_start|>assistant<|header_end|>\\n\\n' }}
{%- endif %}
"""

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": " You are terse. "},
    {"role": "user", "content": "What's 6 · 7? <b>&amp;</b> 🙂"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "mul", "arguments": {"a": 6, "b": "7 <é>"}}]},
    {"role": "ipython", "content": '{"result": 42}'},
    {"role": "user", "content": [{"type": "text", "text": "Say it"}, {"type": "text", "text": " again."}]},
]

FEATURES = {
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ pad_token is defined }}",
    "blocks": "{% for m in messages %}\n    {{ loop.index }}/{{ loop.length }}{{ loop.last }}\n{% endfor %}\nend\n",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "break": "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "else": "{% for i in [] %}{% else %}none{% endfor %}{% for i in nothing %}{% else %}none{% endfor %}",
    "filtered": "{% for m in messages if m.role == 'user' %}{{ loop.nextitem is defined }}{{ m.role }}{% endfor %}",
    "namespace": "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ namespace(dict(b=2)).b }}",
    "recursive": "{% for i in [[1, []], [2, [[3, []]]]] recursive %}{{ i[0] }}{{ loop(i[1]) }}{% endfor %}",
    "items": "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}{{ dict(a=1)['a'] }}",
    "json": "{{ {'b': '<é>', 'a': [1, none]} | tojson }}{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}",
    "macro": "{% macro f(x) %}[{{ x * 2 }}]{% endmacro %}{{ f('ab') }}{{ f(21) }}{{ 2 ** 10 }}",
    "slices": "{% for m in messages[1:] | reverse %}{{ m['role'] }}{% endfor %}{{ messages | length }}",
    "date": "{{ strftime_now('%Y-%m') }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}\n{% endgeneration %}\n{% endfor %}|",
    "generation scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{%- endgeneration -%} {{ x }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.x is defined }}{% endfor %}",
    "dict": "{{ dict.fromkeys(['a', 'b'], 1) }}{{ dict([('c', 2)]) }}{{ namespace(self=3).self }}",
    "no tools": "{{ tools is none }}{{ documents is none }}{{ date_string is defined }}",
}

TOOLS: list[Any] = [None, [{"type": "function", "function": {"name": "mul", "parameters": {"a": "é"}}}], []]
SHOW = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
)
WITH_TOOLS = "T{{ tools | tojson }}" + SHOW
NAMED = [{"name": "tool_use", "template": WITH_TOOLS}, {"name": "default", "template": SHOW}]
ADDED = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}

FILES: dict[str, dict[str, Any]] = {
    "one text": {"tokenizer_config.json": {"chat_template": SHOW, "bos_token": "<|begin_of_text|>"}},
    "a list": {"tokenizer_config.json": {"chat_template": NAMED, "bos_token": "<|begin_of_text|>"}},
    "files before the configuration": {
        "tokenizer_config.json": {"chat_template": "never", "eos_token": "<|eot|>"},
        "chat_template.jinja": SHOW,
    },
    "a folder": {"chat_template.jinja": SHOW, "additional_chat_templates/tool_use.jinja": WITH_TOOLS},
    "a folder's default": {
        "additional_chat_templates/default.jinja": SHOW,
        "additional_chat_templates/other.jinja": "{% generation %}{% endgeneration %}",
    },
    "special tokens in a map": {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end_of_text|>"},
        "special_tokens_map.json": {"bos_token": {"content": "<|begin_of_text|>", **ADDED}, "eos_token": "<|eot|>"},
        "chat_template.jinja": SHOW,
    },
    "a map that does not count": {
        "tokenizer_config.json": {
            "bos_token": "<|begin_of_text|>",
            "added_tokens_decoder": {"400": {"content": "<|new|>", "special": True, **ADDED}},
        },
        "special_tokens_map.json": {"bos_token": "<|eot|>"},
        "chat_template.jinja": SHOW,
    },
    "flags that are changed": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "9": {"content": "<word>", **ADDED, "special": False, "lstrip": True},
                "4": {"content": "<|eot|>", **ADDED, "special": False, "rstrip": True},
            }
        },
        "chat_template.jinja": SHOW,
    },
    "tokens in a list": {
        "added_tokens.json": {"<word>": 401, "<|new|>": 400, "<|eot|>": 4},
        "tokenizer_config.json": {"bos_token": "<|new|>"},
        "chat_template.jinja": SHOW,
    },
    "extra tokens": {
        "tokenizer_config.json": {"additional_special_tokens": ["<extra>", "<|eot|>"], "bos_token": "<|unheard|>"},
        "chat_template.jinja": SHOW,
    },
    "named tokens": {
        "tokenizer_config.json": {"extra_special_tokens": {"image_token": "<|image|>"}, "boi_token": "<extra>"},
        "chat_template.jinja": SHOW + "{{ image_token }}{{ boi_token }}",
    },
    "special tokens as text": {
        "tokenizer_config.json": {"split_special_tokens": True, "bos_token": "<|begin_of_text|>"},
        "chat_template.jinja": SHOW,
    },
    "ignored": {
        "tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True},
        "chat_template.jinja": SHOW,
    },
}

PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}"
)
TEXT = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
MIXED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}{% for part in m.content %}{{ part['text'] }}"
    "{% endfor %}{% else %}{{ m.content | trim }}{% endif %}{% endfor %}"
)
TALK = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Yes?"), ("user", "Bye")]
AS_TEXT = [{"role": role, "content": text} for role, text in TALK]
AS_PARTS = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK]

SPELLED = ["a<|eot|>b", "<|begin_of_text|>", " <|eot|><|eot|> x\n<|header_start|>\n", "\U000f0000<|eot|>"]

HOSTILE = {
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ (''|attr('__class__')).mro() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace argument": "{{ namespace(__class__=1) }}",
    "messages": "{{ messages.append(1) }}",
    "set item": "{{ messages[0].update({'role': 'x'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "product": "{{ 'a' * 10000000000 }}",
    "list product": "{{ (1000000000000 * [0]) | length }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% for x in %}",
    "unclosed": "{{ 'a",
    "unknown tag": "{% shell 'ls' %}",
    "nesting": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "type": "{{ 1 + 'a' }}",
    "zero": "{{ 1 // 0 }}",
    "raise": "{{ raise_exception('roles\n must   alternate') }}",
    "json": "{{ range | tojson }}",
    "none": "{% for x in none %}{% endfor %}",
}

ENDLESS = {
    "ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "text": "{% set x = 'a' * 999 %}" + "{% for i in x %}" * 5 + "{% endfor %}" * 5,
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in [range(9999)] * 9999 recursive %}{{ loop(i) if i is iterable }}{% endfor %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "filter": "{{ [1] | slice(100000000) | list | length }}",
    "lipsum": "{{ lipsum(n=10000000) | length }}",
    "sum": "{{ range(99999) | map('string') | batch(1) | list | tojson | length }}{{ 7 ** (7 ** 9) }}",
}
GREEDY = {
    "indented": "{{ messages | tojson(indent=1000000000) }}",
    "doubled": "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "product": "{{ ('a' * 10**11) | length }}",
    "list product": "{{ ([0] * 10**10) | length }}",
    "format": "{{ '%1000000000d' | format(1) | length }}",
    "center": "{{ 'a' | center(10**10) }}",
    "replace": "{% set x = 'a' * 10**5 %}{{ x | replace('a', x) | length }}",
    "join": "{{ range(99999) | join('a' * 10**5) | length }}",
}
