"""Put a finished `ling demo` run into the package as the model that `ling chat` opens.

python tools/bundle_model.py RUN --commit HASH     HASH: the commit whose code trained it

How the model in the package was made (about 45 minutes on one core):

    ling demo --recipe bundled --out runs/bundled --no-chat
    python tools/bundle_model.py runs/bundled --commit $(git rev-parse HEAD)
"""

import argparse
import json
import shutil
from pathlib import Path

BUNDLED = Path(__file__).parents[1] / "src/ling/engine/bundled"
LARGEST_BYTES = 8_000_000
REQUIRED = ("config.json", "tokenizer.json", "generation_config.json", "*.safetensors")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--commit", required=True)
    given = parser.parse_args(arguments)
    export = given.run / "export/bfloat16"
    if not (given.run / "report.json").is_file():
        parser.error(f"{given.run} is not a finished run of ling demo: it has no report.json")
    if missing := [name for name in REQUIRED if not list(export.glob(name))]:
        parser.error(f"{export} is not a whole export: it has no {', '.join(missing)}")
    report = json.loads((given.run / "report.json").read_text(encoding="utf-8"))
    text = report["bits_per_byte"]
    if text["bfloat16"] >= text["byte_ngram_3"]:
        parser.error(f"{text['bfloat16']:.3f} bits per byte: worse than order-3 bytes, {text['byte_ngram_3']:.3f}")
    files = sorted(export.iterdir())
    if (size := sum(f.stat().st_size for f in files)) > LARGEST_BYTES:
        parser.error(f"{size} bytes are more than {LARGEST_BYTES}")
    for old in (*BUNDLED.glob("*.json"), *BUNDLED.glob("*.safetensors")):
        old.unlink()
    for file in files:
        shutil.copy(file, BUNDLED / file.name)
    (BUNDLED / "PROVENANCE.json").write_text(
        json.dumps(provenance(report, given.commit), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{BUNDLED}: {len(files) + 1} files, {size / 1e6:.2f} MB")


def provenance(report: dict, commit: str) -> dict:
    """Return where the model comes from and what its run measured."""
    return {
        "commit": commit,
        "command": report["command"],
        "when": report["when"],
        "machine": report["machine"],
        "versions": report["versions"],
        "seed": report["recipe"]["train"]["seed"],
        "recipe": report["recipe"],
        "training": {key: report["training"][key] for key in ("steps", "tokens", "seconds", "snapshots")},
        "measured": {
            "gated_percent": report["gated_percent"],
            "tasks": {t["task"]: {"correct": t["correct"], "total": t["total"]} for t in report["tasks"]},
            "bits_per_byte": report["bits_per_byte"],
            "mtp_acceptance_percent": report["speculation"]["acceptance_percent"],
        },
    }


if __name__ == "__main__":
    main()
