"""The model card of an exported run: README.md with what the record says, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from genlab.data.registry import ALIASES, DATASETS


def provenance(name: str | None) -> dict[str, str]:
    """Licence and home page of a data set, where the registry has it; else that its user must know them."""
    entry = DATASETS.get(ALIASES.get(name or "", name or ""))
    if entry is None:
        return {"licence": "not known to GenLab: given by whoever trained the model", "homepage": ""}
    return {"licence": entry.licence, "homepage": entry.homepage}


class Form(NamedTuple):
    """What a kind of folder says of itself; `code` shows its use, where FOLDER and "..." stand for themselves."""

    library: str
    tag: str
    kind: str
    items: str
    code: str
    limits: str


def model_card(name: str, facts: Mapping[str, Any], form: Form) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        facts: as in genlab.json: weights, config, metrics, data, run, versions, code.
        form: of the folder.
    """
    data, weights = facts["data"], facts["weights"]
    prefix = facts["config"]["model"].get("prefix")
    lines = [
        "---",
        f"library_name: {form.library}",
        f"pipeline_tag: {form.tag}",
        "tags: [genlab]",
        "---",
        f"# {name}",
        "",
        f"{form.kind}, trained by GenLab {facts['versions']['genlab']} and exported with its record (`genlab.json`).",
        "",
        "```python",
        form.code,
        "```",
        *(["", f"Before each source stands `{prefix}`."] if prefix else []),
        "",
        "## Training",
        "",
        f"Run `{facts['run']}`: {weights['samples']:,} {form.items} in {weights['updates']:,} steps; "
        f"{'averaged (EMA)' if weights['kind'] == 'ema' else 'raw'} weights, sha256 of the file in `genlab.json`. "
        f"Seed {facts['config'].get('seed')}. Code: `{json.dumps(facts['code'], ensure_ascii=False)}`.",
        "",
        "## Data",
        "",
        f"`{data['name']}`. Licence: {data['licence']}. {data['homepage']}".rstrip(),
        "",
    ]
    if data.get("manifest"):
        lines += ["| split | items | tokens | sha256 |", "|---|---|---|---|"]
        for split, row in data["manifest"]["splits"].items():
            lines.append(f"| {split} | {row.get('count')} | {row.get('tokens', '')} | {row.get('sha256', '')} |")
        lines.append("")
    lines += ["## Metrics", ""]
    for record in facts["metrics"].values():
        reference = record.get("reference") or {}
        stated = {key: reference[key] for key in ("data", "split", "tokens", "context", "stride") if key in reference}
        lines += [
            f"Protocol `{record.get('name')}`: {', '.join(f'{k} {v}' for k, v in stated.items()) or 'see record'}.",
            "",
        ]
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {k} | {'missing' if v is None else f'{v:.6g}'} |" for k, v in record.get("values", {}).items()]
        lines.append("")
    for key, value in (facts.get("final") or {}).items():
        lines.append(f"- last `{key}` of the run: {'not finite' if value is None else f'{value:.6g}'}")
    if not facts["metrics"] and not facts.get("final"):
        lines.append("None was measured.")
    return "\n".join([*lines, "", "## Limits", "", form.limits, ""])


LIMITS = (
    "It knows what its data says, true or not, and may repeat passages of it; it was not made safe for any use. "
    "Perplexities compare only under the same protocol and vocabulary."
)
GENERATION = Form(
    "transformers", "text-generation", "A causal language model", "windows",
    """from transformers import pipeline

print(pipeline("text-generation", "FOLDER")("...")[0]["generated_text"])""", LIMITS,
)  # fmt: skip
TEXT2TEXT = Form(
    "transformers", "text2text-generation", "An encoder-decoder", "pairs",
    """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained("FOLDER") for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
answers = model.generate(**tokenizer(["..."], padding=True, return_tensors="pt"))
print(tokenizer.batch_decode(answers, skip_special_tokens=True))""", LIMITS,
)  # fmt: skip
ADAPTER = Form(
    "peft", "text-generation", "An adapter", "items",
    """from peft import PeftModel

network = PeftModel.from_pretrained(network, "FOLDER")  # the network that it was trained on""", LIMITS,
)  # fmt: skip
