"""Questions about what the tools of an agent returned.

Files ``agent_*``. A row is ``{"id", "messages", "questions": [{"id", "question", "answers": [str]}], "dataset"?}``
with messages as in OpenAI's chat format. The context is what the messages with the role ``tool`` hold, each titled
with its call; a transcript without them is left out, and so is a question that none of them answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from kompakt.compressor.evaluation.data import Record, dataset_of, records_of
from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.chance import shuffled
from kompakt.compressor.evaluation.tasks.contexts import Fitter, has_answer
from kompakt.compressor.types import Document


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a question; where the limit asks for it, with fewer of the outputs without an answer.

    Raises:
        InputError: If a row lacks a field.
    """
    for file, record in records_of(rows):
        outputs = Fitter.of(_outputs(record.records("messages")), settings)
        is_whole = outputs.is_whole
        for item in record.records("questions"):
            name, answers = item.text("id"), item.texts("answers")
            documents = outputs.documents if is_whole else _fitted(name, outputs, answers)
            if documents and any(has_answer(document.text, answers) for document in documents):
                yield Example(
                    name,
                    "agent-transcripts",
                    documents,
                    question=item.text("question"),
                    answers=answers,
                    dataset=dataset_of(file, record),
                    group=record.text("id") if is_whole else "",
                )


def _fitted(name: str, outputs: Fitter, answers: tuple[str, ...]) -> tuple[Document, ...] | None:
    others = [position for position, output in enumerate(outputs.documents) if not has_answer(output.text, answers)]
    return outputs.with_some(shuffled(others, int, outputs.settings.seed, name))


def _outputs(messages: list[Record]) -> Iterator[Document]:
    titles: dict[str, str] = {}
    n_outputs = 0
    for message in messages:
        if message.fields.get("tool_calls"):
            # an id that is used again names the latest call
            titles.update((str(call.fields.get("id")), _title(call)) for call in message.records("tool_calls"))
        if message.fields.get("role") == "tool":
            text = _text(message.fields.get("content"))
            if text.strip():
                title = titles.get(str(message.fields.get("tool_call_id")), message.text_or("name", ""))
                yield Document(text, id=str(n_outputs), metadata={"title": title} if title else {})
                n_outputs += 1


def _title(call: Record) -> str:
    """Return the command of a shell's call, and ``name(arguments)`` of any other."""
    function = call.fields.get("function")
    called = Record(function, f"{call.place}, function") if isinstance(function, Mapping) else call
    arguments = called.fields.get("arguments", "")
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    match _parsed(written):
        case {"command": str(command)}:
            return command
        case _:
            return f"{called.text_or('name', 'tool')}({written})"


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(content: object) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "\n".join(map(_text, content))
        case {"text": str(text)}:
            return text
        case _:
            return json.dumps(content, ensure_ascii=False)


TASK = Task(
    "agent-transcripts",
    "Agent transcripts",
    "Find a value in what an agent's tools returned: JSON, logs, code, tables",
    ("agent_*",),
    examples,
)
