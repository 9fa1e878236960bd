"""LLaMA-Factory's own argument classes, data format and chat template, without the libraries it trains with.

    python -m tests.compat.llamafactory_stand_in PACKAGES REQUEST

REQUEST is JSON: directory (an export), samples (lines of its data file); datasets (records by name) and dataset_dir, if
there are others. Prints JSON: fields, of every argument class that a training recipe may set; tokens, the ids of each
sample by the template that the recipes name; datasets, for each record (ids of a prompt, ids of its answer) by turn.
"""

import dataclasses
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from transformers import AutoTokenizer

ABSENT = ("peft", "datasets", "torchaudio", "omegaconf", "accelerate", "trl")


class Anything(types.ModuleType):
    """A library that has every name, each an inert class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder:
    """Answers imports of what is absent."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.partition(".")[0] not in ABSENT:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> types.ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def without_init(packages: Path, *names: str) -> None:
    """Make packages whose own __init__, which imports everything, does not run."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(packages / name.replace(".", "/"))]
        sys.modules[name] = module


def fields() -> list[str]:
    """Return every field of the argument classes, in the order a recipe is parsed into them."""
    classes = {
        "model_args": "ModelArguments", "data_args": "DataArguments", "training_args": "TrainingArguments",
        "finetuning_args": "FinetuningArguments", "generating_args": "GeneratingArguments",
    }  # fmt: skip
    found = []
    for module, name in classes.items():
        chosen = getattr(importlib.import_module(f"llamafactory.hparams.{module}"), name)
        found += [field.name for field in dataclasses.fields(chosen) if field.init]
    return found


Pairs = list[tuple[list[int], list[int]]]


def encode(recipe: dict[str, Any], samples: list[dict[str, Any]]) -> list[Pairs]:
    """Put samples through the converter of the data set, and through the template, that a recipe names."""
    parser = importlib.import_module("llamafactory.data.parser")
    converter = importlib.import_module("llamafactory.data.converter")
    templates = importlib.import_module("llamafactory.data.template")
    (dataset,) = parser.get_dataset_list([recipe["dataset"]], recipe["dataset_dir"])
    assert dataset.load_from == "file", dataset
    convert = converter.DATASET_CONVERTERS[dataset.formatting](dataset, SimpleNamespace(media_dir=None))
    template = templates.TEMPLATES[recipe["template"]]
    tokenizer = AutoTokenizer.from_pretrained(recipe["model_name_or_path"])
    template.fix_special_tokens(tokenizer)
    encoded = []
    for sample in samples:
        row = convert(sample)
        pairs = template.encode_multiturn(tokenizer, row["_prompt"] + row["_response"], row["_system"], row["_tools"])
        encoded.append(pairs)
    return encoded


def main(packages: str, request_file: str) -> None:
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    without_init(Path(packages), "llamafactory", "llamafactory.data", "llamafactory.hparams", "llamafactory.extras")
    directory = Path(request["directory"])
    recipe = yaml.safe_load((directory / "llamafactory/sft_full.yaml").read_text(encoding="utf-8"))
    answer: dict[str, Any] = {"fields": fields(), "datasets": {}}
    answer["tokens"] = [
        [token for pair in pairs for part in pair for token in part] for pairs in encode(recipe, request["samples"])
    ]
    for name, records in request.get("datasets", {}).items():
        answer["datasets"][name] = encode(recipe | {"dataset": name, "dataset_dir": request["dataset_dir"]}, records)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
