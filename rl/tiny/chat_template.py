"""The tiny model's chat template: ChatML with tools, in Qwen's form."""

# Rendering a sampled assistant turn must reproduce the sampled text, or multi-turn trajectories couldn't be trained
# exactly. So nothing is stripped, and a tool call is written as in the corpus.
CHAT_TEMPLATE = """\
{%- macro text(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is not none and content is not undefined -%}
        {%- for part in content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if messages[0].role == 'system' -%}{{- text(messages[0].content) + '\\n' -}}{%- endif -%}
    {{- 'Tools:\\n' -}}
    {%- for tool in tools -%}{{- (tool.function if tool.function is defined else tool) | tojson + '\\n' -}}{%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {{- '<|im_start|>user\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response><|im_end|>\\n' -}}
    {%- elif not (tools and loop.first and message.role == 'system') -%}
        {{- '<|im_start|>' + message.role + '\\n' + text(message.content) -}}
        {%- if message.role == 'assistant' and message.tool_calls -%}
            {%- for call in message.tool_calls -%}
                {%- if not loop.first or text(message.content) -%}{{- '\\n' -}}{%- endif -%}
                {{- '<tool_call>\\n{"name": ' + (call.function.name | tojson) + ', "arguments": ' -}}
                {%- if call.function.arguments is string -%}
                    {{- call.function.arguments -}}
                {%- else -%}
                    {{- call.function.arguments | tojson -}}
                {%- endif -%}
                {{- '}\\n</tool_call>' -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""  # noqa: E501
