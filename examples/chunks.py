"""For RAG engineers: shrink retrieved chunks to a budget, and keep the citations working."""

from pathlib import Path

import kompakt

QUESTION = "Who approves emergency changes to checkout?"
DATA = Path(__file__).parent / "data"

# what a retriever returns: chunks of files, each with its place
chunks = []
for name in ("handbook.md", "postmortem.md", "kundenservice.txt"):
    start = 0
    for number, paragraph in enumerate((DATA / name).read_text(encoding="utf-8").split("\n\n")):
        metadata = {"path": name, "offset": start}
        chunks.append(kompakt.Document(paragraph, id=f"{name}#{number}", metadata=metadata))
        start += len(paragraph) + 2

small = kompakt.compress(chunks, query=QUESTION, max_tokens=250)

print(f"{len(chunks)} chunks -> {len(small.documents)}, {small.tokens_before} -> {small.tokens_after} tokens\n")
sources = {chunk.id: chunk for chunk in chunks}
for span in small.spans:
    chunk = sources[span.document_id]
    text = chunk.text[span.start : span.end]
    if span.kind in ("omission", "separator") or not text.strip():  # written by kompakt, or blank
        continue
    begin = chunk.metadata["offset"] + span.start
    print(f"{chunk.metadata['path']}[{begin}:{begin + len(text)}] {text!r}")
