"""A template that would take all time or memory, or reach out, is one clear error, and the next one works."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cases import each

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.generation_settings import Dialect
from adaptive_lm.runtime.chat.prompt import prompt_turns
from adaptive_lm.runtime.chat.renderer import MAX_TEMPLATE, RENDERER, Renderer, TemplateFailedError, TemplateLimitError

BOTH: list[Dialect] = ["own", "huggingface"]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" * 9
HUGE = [
    "{{ 'x' * 10**10 }}",
    "{{ 'x'.ljust(10**10) }}",
    "{% set ns = namespace(t='x' * 1000) %}{% for i in range(99999) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "{{ ([0] * 10**9) | length }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'x' * (2 * 10**7) }}",
]
REACHING = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ dict.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ ''.format.__self__ }}{{ '{0.__class__}'.format(1) }}",
]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer(seconds=1.0)
    yield renderer
    renderer.close()


@pytest.mark.parametrize("dialect", BOTH)
def test_a_template_that_runs_for_ever_is_stopped(renderer: Renderer, dialect: Dialect) -> None:
    assert renderer.render("{{ 1 }}", dialect, {}) == "1"
    begin = time.monotonic()
    with pytest.raises(TemplateLimitError, match="takes more than 1 s"):
        renderer.render(LOOP, dialect, {})
    assert time.monotonic() - begin < 5
    assert renderer.render("{{ 2 }}", dialect, {}) == "2"


@each("template", HUGE)
def test_a_template_that_takes_all_memory_is_stopped(renderer: Renderer, template: str) -> None:
    with pytest.raises((TemplateFailedError, TemplateLimitError), match=r"it (takes more than|made|ended)|memory"):
        renderer.render(template, "huggingface", {})
    assert renderer.render("{{ 3 }}", "huggingface", {}) == "3"


@each("dialect", BOTH)
@each("template", REACHING)
def test_a_template_that_reaches_out_gets_nothing(renderer: Renderer, template: str, dialect: Dialect) -> None:
    try:
        text = renderer.render(template, dialect, {})
    except TemplateFailedError:
        return
    assert text == "", "an attribute that is not there"


def test_the_process_can_open_no_file_and_start_no_program(renderer: Renderer) -> None:
    """What is left if a template gets past the sandbox."""
    renderer.render("{{ 1 }}", "own", {})
    assert renderer.process is not None
    with open(f"/proc/{renderer.process.pid}/limits", encoding="ascii") as file:  # noqa: PTH123
        limits = {line[:26].strip(): line[26:].split()[0] for line in file.read().splitlines()[1:]}
    assert (limits["Max open files"], limits["Max file size"], limits["Max processes"]) == ("3", "0", "0")


def test_filters_and_tests_of_jinja2_need_no_file(renderer: Renderer) -> None:
    templates = (
        "{{ x | pprint }}", "{{ x | urlencode }}", "{{ 'a' | wordwrap }}", "{{ lipsum(n=1) }}", "{{ 'é' | upper }}",
        "{{ [2, 1] | sort | join | string | title }}", "{{ '%s' | format('a') }}", "{{ 1.5 | round }}",
        "{{ '\\u00e9' }}",
        "{{ 'a' | urlize | striptags | e | safe }}", "{{ 3 | filesizeformat }}", "{{ [1, 2] | random }}",
        "{{ {'a': 1} | xmlattr }}", "{{ 'A' | center(9) | indent }}", "{{ [x] | groupby('a') | list }}",
    )  # fmt: skip
    for template in templates:
        renderer.render(template, "huggingface", {"x": {"a": "é"}})


def test_a_template_that_is_too_long_is_not_compiled(renderer: Renderer) -> None:
    with pytest.raises(TemplateLimitError, match="at most"):
        renderer.render("x" * (MAX_TEMPLATE + 1), "own", {})


def test_a_template_nested_too_deeply_is_an_error(renderer: Renderer) -> None:
    with pytest.raises((TemplateFailedError, TemplateLimitError)):
        renderer.render("{% if a %}" * 20_000 + "{% endif %}" * 20_000, "huggingface", {})
    assert renderer.render("{{ 4 }}", "huggingface", {}) == "4"


def test_the_error_of_a_model_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"chat template failed: .*memory; use --raw to send the prompt"):
        prompt_turns("{{ 'x' * 10**10 }}", [{"role": "user", "content": "a"}])


def test_a_conversation_that_is_no_json_is_refused(renderer: Renderer) -> None:
    with pytest.raises(UserError, match="no JSON"):
        renderer.render("x", "huggingface", {"a": object()})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_starts_a_process_of_its_own_and_leaves_the_parents_alone() -> None:
    assert RENDERER.render("{{ 1 }}", "own", {}) == "1"
    process = RENDERER.process
    child = os.fork()
    if child == 0:
        other = False
        try:
            other = RENDERER.render("{{ 2 }}", "own", {}) == "2" and RENDERER.process is not process
            RENDERER.close()
        finally:
            os._exit(0 if other else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert process is not None
    assert process.poll() is None
    assert RENDERER.render("{{ 3 }}", "own", {}) == "3"
    assert RENDERER.process is process


def test_many_threads_get_their_own_texts(renderer: Renderer) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda n: renderer.render("{{ n }}", "huggingface", {"n": n}), range(200)))
    assert texts == [str(n) for n in range(200)]
