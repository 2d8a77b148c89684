"""For platform engineers: compress a corpus once, as a batch job, with a pipeline that a file describes."""

import json
import sys
import tempfile
from pathlib import Path

import kompakt

PIPELINE = """
schema_version = 1
tokenizer = "o200k_base"

[[stages]]
compressor = "dedup"

[[stages]]
compressor = "lexical"
"""

with tempfile.TemporaryDirectory() as folder:
    config = Path(folder) / "pipeline.toml"
    config.write_text(PIPELINE, encoding="utf-8")
    pipeline = kompakt.Pipeline.from_toml(config)

files = sorted(path for path in (Path(__file__).parent / "data").iterdir() if path.name != "README.md")
corpus = [
    kompakt.Document(path.read_text(encoding="utf-8"), id=path.name, metadata={"path": path.name}) for path in files
]

for source, small in zip(corpus, kompakt.compress_batch(corpus, keep=0.3, compressor=pipeline), strict=True):
    record = {
        "id": source.id,
        "text": small.text,
        "spans": [[span.start, span.end, span.kind] for span in small.spans],
    }
    json.dump(record, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
    stages = ", ".join(f"{trace.stage} {trace.tokens_before} -> {trace.tokens_after}" for trace in small.trace)
    print(f"{source.id}: {small.outcome.status} {small.outcome.reason} ({stages})", file=sys.stderr)
