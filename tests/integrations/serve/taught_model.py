"""A tiny model that knows a few conversations by heart, so that an agent gets real calls from real tokens."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.environment import Message, ToolSchema

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}# Tools\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{% if m.content or not loop.first %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif m.role == 'user' or not loop.first %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""In the manner of Qwen: it tells of tools, of calls and of their results."""
_MOST_STEPS = 600
_KNOWN_LOSS = 0.01


@dataclass(frozen=True)
class Lesson:
    """What is said to the model, and what it says."""

    opening: tuple[Message, ...]
    tools: tuple[ToolSchema, ...]
    turns: tuple[str, ...]
    result: str = ""
    """What the tool gives between two turns."""


def teach(model_dir: Path, folder: Path, lessons: Sequence[Lesson]) -> Path:
    """A copy of the model in `folder` that says its part of each lesson, at temperature 0."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rollout.prompt_format import open_format

    shutil.copytree(model_dir, folder, dirs_exist_ok=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    speech = open_format(tokenizer)
    rows = []
    for lesson in lessons:
        ids = list(speech.open(lesson.opening, lesson.tools))
        labels = [-100] * len(ids)
        for turn, said in enumerate(lesson.turns):
            said_ids = tokenizer.encode(said + "<|im_end|>", add_special_tokens=False)
            last = turn + 1 == len(lesson.turns)
            heard = [] if last else speech.reply((Message("tool", lesson.result),), ended=True)
            ids += said_ids + heard
            labels += said_ids + [-100] * len(heard)
        rows.append((torch.tensor([ids]), torch.tensor([labels])))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(_MOST_STEPS):
        losses = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in rows])
        worst = float(losses.detach().max())
        if worst < _KNOWN_LOSS:
            break
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
    else:
        raise AssertionError(f"the tiny model did not learn its lessons: loss {worst:.3f}")
    model.save_pretrained(folder)
    return folder
