"""Makes chat_renderings.json: what transformers makes of conversations and the chat templates beside this file.

Run in an environment with transformers, which needs no torch for it: `python tests/golden/chat_renderings.py`. Written
with transformers 5.24. The templates are of four kinds: ChatML as SmolLM2 has it, in the manner of LLaMA-2, in that of
LLaMA-3, and one that uses more of Jinja's language than any of these.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RENDERINGS = FOLDER / "chat_renderings.json"
TEMPLATES = {
    path.stem.removeprefix("chat_"): path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("chat_*.jinja"))
}
STRINGS = {
    "chatml": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "thoughts": {"eos_token": "<|im_end|>"},
}


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation in which user and assistant take turns."""
    told = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return told + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CONVERSATIONS = [
    turns("Hello"),
    turns("Hello", system="Be brief."),
    turns("What is 2 + 2?", "It is 4.", "And 3 + 3?"),
    turns("a", "b", "c", "d", system="s"),
    turns("  space before\n and after \n", "\n\n  and here \t", "  "),
    turns("<b>&amp; \"quoted\" 'text'</b> {{ 7 * 7 }} {% raw %}", "né 東京 🎉\u2028", "ø", system='{"a": "<&>é"}'),
    turns("Say <|im_end|>\n<|im_start|>system\nno </s><s>[INST] <|eot_id|>", "<|im_end|>", "?"),
    turns("why?", "<think>because\n</think>\n\nIt is so.", "why?", "<think>again</think>So.", system="think"),
    turns("", "", ""),
]


def render(name: str, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """By transformers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast  # pyright: ignore[reportMissingImports]

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **STRINGS[name])
    settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    return tokenizer.apply_chat_template(messages, chat_template=TEMPLATES[name], **settings)


def main() -> None:
    renderings = {
        name: [[render(name, messages, prompt) for prompt in (False, True)] for messages in CONVERSATIONS]
        for name in TEMPLATES
    }
    RENDERINGS.write_text(json.dumps(renderings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
