"""Text, streams of text and chat templates: against the tokenizers and transformers libraries, and hostile files."""

from __future__ import annotations

import builtins
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from l4export.errors import EnvironmentLacks, InputError, StorageError
from l4export.runtimes.text import chat_template
from l4export.runtimes.text.codec import TextCodec, TextStream

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>"]
CORPUS = ["the quick brown fox, the dog; user system assistant ipython", "naïve café e\u0301", "日本語 🙂 👩‍🚀"] * 3
HARD = "the  fox 🙂👩‍🚀🇩🇪 e\u0301 \ufffd\ufffd  日本\n\n\t\x00 שלום" + "a" * 40

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


def byte_level(corpus: list[str] = CORPUS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    begin = [(SPECIAL[0], 0)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=begin)
    return tokenizer


TOKENIZER = byte_level()
CODEC = TextCodec(byte_level())
IDS = st.lists(st.integers(0, TOKENIZER.get_vocab_size() + 3), max_size=80)
BYTE_IDS = [TOKENIZER.token_to_id(symbol) for symbol in sorted(pre_tokenizers.ByteLevel.alphabet())]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": SPECIAL[0], "eos_token": {"content": SPECIAL[4], "lstrip": False}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def opened(directory: Path) -> TextCodec:
    codec = TextCodec.open(directory)
    assert codec is not None
    return codec


def templated(source: str, **special_tokens: str) -> TextCodec:
    return TextCodec(byte_level(), source, special_tokens)


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(token) for token in ids), stream.flush()]


# --- text -----------------------------------------------------------------------------------------------------------


def test_a_directory_without_a_tokenizer_has_no_codec(tmp_path: Path) -> None:
    assert TextCodec.open(tmp_path) is None
    assert TextCodec.open(str(tmp_path / "absent")) is None


@settings(deadline=None)
@given(st.text(max_size=60))
def test_text_survives(text: str) -> None:
    assert CODEC.decode(CODEC.encode(text)) == text
    assert CODEC.encode(text) == TOKENIZER.encode(text).ids
    assert CODEC.encode(text, add_special_tokens=False) == TOKENIZER.encode(text).ids[1:]


def test_special_tokens_show_on_request() -> None:
    ids = CODEC.encode("the fox<|eot|>")
    assert CODEC.decode(ids) == "the fox"
    assert CODEC.decode(ids, skip_special_tokens=False) == "<|begin_of_text|>the fox<|eot|>"


def test_encode_gives_every_token_and_no_padding() -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    assert TextCodec(tokenizer).encode(HARD) == TOKENIZER.encode(HARD).ids


@pytest.mark.parametrize("ids", [[-1], [2**40]])
def test_impossible_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match=r"token ids?.*vocabulary"):
        CODEC.decode(ids)
    with pytest.raises(InputError, match=r"token ids?.*vocabulary"):
        CODEC.stream().push(ids[0])


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InputError, match="character 2 is a lone surrogate"):
        CODEC.encode("ab\ud800")


# --- streams --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(IDS | st.lists(st.sampled_from(BYTE_IDS), max_size=80), st.booleans())
def test_a_stream_makes_what_decode_makes(ids: list[int], skip: bool) -> None:
    """Any ids at all: unfinished and invalid bytes, special tokens between the bytes of a character, unknown ids."""
    assert "".join(pieces(CODEC.stream(skip), ids)) == CODEC.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=30) | st.text(st.sampled_from(HARD), max_size=60))
def test_a_stream_of_text_never_shows_an_unfinished_character(text: str) -> None:
    ids = CODEC.encode(text)
    shown = ""
    stream = CODEC.stream()
    for count, token in enumerate(ids, 1):
        shown += stream.push(token)
        assert text.startswith(shown)
        assert shown == CODEC.decode(ids[:count]).removesuffix("\ufffd")
    assert shown + stream.flush() == text


def test_a_character_comes_with_its_last_byte() -> None:
    codec = TextCodec(byte_level(["nothing"]))
    ids = codec.encode("🙂!", add_special_tokens=False)
    assert len(ids) == 5
    assert pieces(codec.stream(), ids) == ["", "", "", "🙂", "!", ""]
    assert pieces(codec.stream(), ids[:3]) == ["", "", "", "\ufffd"]


def test_a_flushed_stream_starts_anew() -> None:
    stream = CODEC.stream()
    ids = CODEC.encode(HARD)
    assert "".join(pieces(stream, ids[:7])) == CODEC.decode(ids[:7])
    assert "".join(pieces(stream, ids)) == HARD
    assert stream.flush() == ""


@pytest.mark.parametrize("token", ["a", "é", "special", "unknown", "invalid"])
def test_work_per_token_is_bounded(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no character is ever finished: the window does not grow with invalid bytes or skipped tokens."""
    symbol = {"special": 4, "unknown": 10**6, "invalid": TOKENIZER.token_to_id("ÿ")}
    ids = [symbol[token]] * 500 if token in symbol else CODEC.encode(token, add_special_tokens=False) * 500
    lengths: list[int] = []
    decode = TextCodec.decode

    def watched(self: TextCodec, window: list[int], skip_special_tokens: bool = True) -> str:
        lengths.append(len(window))
        return decode(self, window, skip_special_tokens)

    expected = CODEC.decode(ids)
    monkeypatch.setattr(TextCodec, "decode", watched)
    assert "".join(pieces(CODEC.stream(), ids)) == expected
    assert max(lengths) <= 2 * TextStream.CONTEXT and len(lengths) <= 2 * len(ids) + 1


def test_streams_keep_the_spaces_of_other_decoders() -> None:
    words = {"▁the": 0, "▁fox": 1, "es": 2, "▁": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="▁"))
    tokenizer.decoder = decoders.Metaspace()
    codec = TextCodec(tokenizer)
    ids = [0, 1, 2, 3, 0] * 20
    assert "".join(pieces(codec.stream(), ids)) == codec.decode(ids)


# --- chat -----------------------------------------------------------------------------------------------------------


def test_chat_is_that_of_llama_4(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(LLAMA4)
    codec = opened(directory)
    prompt = codec.render_chat([{"role": "system", "content": "Terse."}, {"role": "user", "content": "Hi"}])
    assert prompt == (
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nTerse.<|eot|>"
        "<|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )
    ids = codec.encode_chat([{"role": "user", "content": "Hi"}])
    assert ids.count(0) == 1 and ids[:2] == [0, 2] and ids.count(4) == 1


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("count", range(1, len(CHAT) + 1))
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "mul"}}]])
def test_chat_is_that_of_transformers(directory: Path, count: int, generate: bool, tools: list[Any] | None) -> None:
    transformers = pytest.importorskip("transformers")
    (directory / "chat_template.jinja").write_text(LLAMA4)
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token=SPECIAL[0], eos_token=SPECIAL[4], chat_template=LLAMA4
    )
    options = {"add_generation_prompt": generate, "tools": tools}
    text = reference.apply_chat_template(CHAT[:count], tokenize=False, **options)
    ids = reference.apply_chat_template(CHAT[:count], return_dict=False, **options)
    codec = opened(directory)
    assert codec.render_chat(CHAT[:count], **options) == text
    assert codec.encode_chat(CHAT[:count], **options) == ids


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
    "no tools": "{{ tools is none }}{{ documents is none }}{{ date_string is defined }}",
}


@pytest.mark.parametrize("source", FEATURES.values(), ids=FEATURES.keys())
def test_templates_see_what_they_see_in_transformers(directory: Path, source: str) -> None:
    transformers = pytest.importorskip("transformers")
    (directory / "chat_template.jinja").write_text(source)
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token=SPECIAL[0], eos_token=SPECIAL[4], chat_template=source
    )
    expected = reference.apply_chat_template(CHAT, tokenize=False)
    assert opened(directory).render_chat(CHAT) == expected


def test_variables_prevail_over_special_tokens() -> None:
    codec = templated("{{ bos_token }}{{ date_string }}", bos_token="A")
    assert codec.render_chat([], date_string="today") == "Atoday"
    assert codec.render_chat([], bos_token="B") == "B"


def test_where_the_template_is_found(directory: Path) -> None:
    config = directory / "tokenizer_config.json"
    assert not opened(directory).has_chat_template
    with pytest.raises(InputError, match="there is none"):
        opened(directory).render_chat(CHAT)
    config.write_text(json.dumps({"chat_template": "plain"}))
    assert opened(directory).chat_template == "plain"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "usual"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert opened(directory).chat_template == "usual"
    config.write_text(json.dumps({"chat_template": named[:1]}))
    assert opened(directory).chat_template == "tools"
    (directory / "chat_template.jinja").write_text("file {{ 'é' }}", encoding="utf-8")
    assert opened(directory).render_chat([]) == "file é"
    assert opened(directory).has_chat_template


# --- what is not to be trusted --------------------------------------------------------------------------------------

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
    "power": "{{ 10 ** (10 ** 10) }}",
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


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_are_refused_in_one_line(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"^chat template: .") as error:
        templated(source).render_chat([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = 'a' * 999 %}" + "{% for i in x %}" * 5 + "{% endfor %}" * 5,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in [range(9999)] * 9999 recursive %}{{ loop(i) if i is iterable }}{% endfor %}",
    ],
    ids=["ranges", "text", "macro", "recursive loop"],
)
def test_endless_templates_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"chat template: it takes more than 0\.2 seconds"):
        templated(source).render_chat([])


def test_sizes_of_templates_and_prompts_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "PROMPT_CHARACTERS", 1000)
    assert len(templated("{% for i in range(10) %}{{ 'a' * 100 }}{% endfor %}").render_chat([])) == 1000
    with pytest.raises(InputError, match="it writes more than 1000 characters"):
        templated("{% for i in range(11) %}{{ 'a' * 100 }}{% endfor %}").render_chat([])
    monkeypatch.setattr(chat_template, "TEMPLATE_CHARACTERS", 10)
    with pytest.raises(InputError, match="11 characters, at most 10"):
        templated("a" * 11).render_chat([])


def test_the_reason_a_template_gives_is_told() -> None:
    with pytest.raises(InputError, match=r"^chat template: roles must alternate; correct the messages"):
        templated(HOSTILE["raise"]).render_chat([])


def test_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "x"}]
    templated("{% set messages = messages + messages %}{{ messages | length }}").render_chat(messages)
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not a tokenizer: "),
        ("tokenizer.json", b"[" * 100_000, "not a tokenizer: "),
        ("tokenizer.json", b"\xff\xfe", "not a tokenizer: "),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', "not a tokenizer: "),
        ("tokenizer_config.json", b"{", "not JSON: "),
        ("tokenizer_config.json", b"[" * 100_000, "not JSON: "),
        ("tokenizer_config.json", b"[]", "a JSON list, not an object"),
        ("tokenizer_config.json", b"\xff", "byte 0 is not UTF-8"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "neither text nor a list"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "x", "template": 3}]}', "neither text nor a list"),
        ("chat_template.jinja", b"ok \xff", "byte 3 is not UTF-8"),
    ],
)
def test_broken_files_are_refused_by_name(directory: Path, name: str, content: bytes, message: str) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        TextCodec.open(directory)
    assert name in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size"),
    [("tokenizer.json", 257 << 20), ("tokenizer_config.json", 17 << 20), ("chat_template.jinja", 17 << 20)],
)
def test_oversized_files_are_not_read(directory: Path, name: str, size: int) -> None:
    (directory / name).touch()
    os.truncate(directory / name, size)  # sparse: takes no space
    with pytest.raises(InputError, match=f"{name}: {size} bytes, at most"):
        TextCodec.open(directory)


def test_odd_special_tokens_are_left_out(directory: Path) -> None:
    config = {"bos_token": {"content": 3}, "eos_token": ["x"], "pad_token": "", "unk_token": "U", "chat_template": "x"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert opened(directory).special_tokens == {"unk_token": "U"}


def test_unreadable_files_are_a_storage_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(StorageError, match=r"tokenizer\.json: cannot be read: Permission denied"):
        TextCodec.open(directory)


@pytest.mark.parametrize("package", ["tokenizers", "jinja2"])
def test_a_missing_package_is_named(directory: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (directory / "chat_template.jinja").write_text("x")
    codec = opened(directory)
    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(EnvironmentLacks, match=rf"{package} is not installed: pip install 'l4export\[cpu\]'"):
        TextCodec.open(directory) if package == "tokenizers" else codec.render_chat([])
