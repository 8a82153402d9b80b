"""What the tiny model of these tests is asked and says."""

from __future__ import annotations

from rollout.environment import ToolSchema

QUESTION = "What is six times seven?"
MULTIPLY: ToolSchema = {
    "type": "function",
    "function": {
        "name": "product_multiply",
        "description": "Multiply two integers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"title": "A", "type": "integer"}, "b": {"title": "B", "type": "integer"}},
            "required": ["a", "b"],
            "title": "multiplyArguments",
        },
    },
}
"""As verifiers tells of the tool in product_taskset."""
CALL = '<tool_call>\n{"name": "product_multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call>'
ANSWER = "It is 42."
COUNTING = "one two three four five six seven eight nine ten eleven twelve"
