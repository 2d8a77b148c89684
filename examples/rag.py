"""Questions about a folder of documents: index, search, compress, answer, and cite files and offsets.

    python examples/rag.py                                          # the folder examples/data, without an answer
    python examples/rag.py ~/papers "What limits the range?" --url http://127.0.0.1:8080/v1#qwen3-8b

Reads PDF, Markdown, HTML and text. The index and the store lie in the folder ``.kompakt`` of the documents, or where
``--index`` says; a second run encodes what is new and nothing else. ``--url`` is any endpoint that speaks the chat
completions of OpenAI, such as llama.cpp's or vLLM's. Needs the extras corpus, local and retrieval, and for answers
openai.
"""

import argparse
import sys
from pathlib import Path

import kompakt
from kompakt.compressor.backend import Prompt, load_backend
from kompakt.retrieval.corpus.readers import ReadOptions, find_files, read_file
from kompakt.retrieval.retriever import Context, Retriever

DATA = Path(__file__).parent / "data"
QUESTION = "Who approves emergency changes, and who approved the one on 14 March?"


def documents_of(folder: Path) -> list[kompakt.Document]:
    """Read every file of a folder; files that cannot be read are named and left out."""
    documents = []
    for file in find_files([folder]):
        for record in read_file(file, ReadOptions()):
            if record.document is None:
                print(f"left out: {record.source}: {record.error}")
            else:
                documents.append(record.document)
    return documents


def opened(folder: Path, store: Path) -> Retriever:
    pipeline = kompakt.Pipeline(["extractive"], store=store)
    if folder.is_dir():
        return Retriever.open(folder, pipeline=pipeline, keep=0.5)
    return Retriever.create(folder, pipeline=pipeline, keep=0.5)


def show(context: Context, documents: list[kompakt.Document]) -> None:
    """Print the context, piece by piece, each with the place that it comes from."""
    sources = {document.id: document for document in documents}
    for span in context.citations:
        document = sources[span.document_id]
        text = document.text[span.start : span.end].strip()
        if span.kind == "omission" or not text:
            continue
        starts = document.metadata.get("pages")
        page = f", page {sum(start <= span.start for start in starts)}" if isinstance(starts, list) else ""
        print(f"  {span.document_id}[{span.start}:{span.end}]{page}  {' '.join(text.split())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DATA)
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--index", type=Path, help="where the index and the store are")
    parser.add_argument("--max-tokens", type=int, default=150)
    parser.add_argument("--url", help="an endpoint and a model, joined by #")
    args = parser.parse_args()

    documents = documents_of(args.folder)
    index = args.index or args.folder / ".kompakt"
    index.mkdir(parents=True, exist_ok=True)
    with opened(index / "index", index / "store.sqlite") as retriever:
        report = retriever.add(documents)
        print(
            f"{report.n_added + report.n_replaced} documents added, {report.n_unchanged} known, "
            f"{len(retriever.index)} segments"
        )
        context = retriever.retrieve_and_compress(args.question, args.max_tokens)

    found = context.compressed
    print(f"{len(context.hits)} segments found: {found.tokens_before} -> {found.tokens_after} tokens\n")
    show(context, documents)
    if args.url:
        backend = load_backend("http", args.url)
        question = f"\n\nAnswer from the text above alone, in one sentence.\nQuestion: {args.question}\nAnswer:"
        answer = backend.generate(Prompt(found.parts, after=question), max_new_tokens=80)
        print(f"\n{args.question}\n{answer.text.strip()}")


if __name__ == "__main__":
    try:
        main()
    except kompakt.KompaktError as error:
        sys.exit(f"error: {error}")
