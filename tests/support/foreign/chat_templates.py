"""Chat templates in the manner of several families, short, with the constructs that theirs use."""

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\nCalls go between <tool_call></tool_call>.<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{%- continue %}{%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content and loop.index0 > ns.last %}
            {{- '<think>' + message.reasoning_content.strip('\\n') + '</think>' }}
        {%- endif %}
        {%- generation %}{{- message.content or '' }}{%- endgeneration %}
        {%- for call in message.tool_calls %}
            {%- set call = call.function if call.function is defined else call %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
INST = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate.') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}
{% else %}{{ ' ' ~ message['content'] | trim ~ ' ' ~ eos_token }}{% endif %}
{% endfor %}
"""
DATED = """\
{{- bos_token }}
{%- macro header(role) %}{{ '<|im_start|>' ~ role ~ '\\n\\n' }}{%- endmacro %}
{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}{%- endif %}
{{- header('system') ~ 'Today: ' ~ today ~ '<|im_end|>' }}
{%- for document in documents or [] %}{{- document['title'] ~ ': ' ~ document.text ~ '\\n' }}{%- endfor %}
{%- for message in messages %}
    {%- if loop.index0 > 7 %}{%- break %}{%- endif %}
    {{- header(message.role) ~ message.content | trim ~ '<|im_end|>' }}
{%- endfor %}
{{- dict(a=1, b='é') | tojson(indent=2) }}{{ pad_token }}{{ unk_token }}{{ missing }}
{%- if add_generation_prompt %}{{- header('assistant') }}{%- endif %}
"""
FOREIGN = {"chatml": CHATML, "inst": INST, "dated": DATED}
