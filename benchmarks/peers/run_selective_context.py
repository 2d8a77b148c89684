"""Selective Context 0.1.4: self-information of phrases under a language model; it takes no question.

    run_selective_context.py MODEL_FOLDER SPACY_FOLDER

The call is the README's: ``SelectiveContext(model_type="gpt2", lang="en")(text, reduce_ratio=1 - keep)``, at its
default level, the phrase. All documents are one text, so that all phrases compete.

Two methods that fetch models by name are replaced. The language model is the one in MODEL_FOLDER, which is what
kompakt and LLMLingua get here as well; the phrases come from the spaCy pipeline in SPACY_FOLDER. What the model says
of a sentence is remembered for the next budget; the seconds count as if it were not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve import Memory, joined, serve

MEMORY = Memory(size=4000)


def load(arguments: Sequence[str]) -> Callable[[dict], str]:
    model_folder, spacy_folder = arguments
    import spacy
    import torch
    from selective_context import SelectiveContext
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class LocalSelectiveContext(SelectiveContext):
        def _prepare_phrase_tokenizer(self) -> None:
            self.nlp = spacy.load(spacy_folder, disable=["ner"])
            self.nlp.add_pipe("merge_noun_chunks")

        def _prepare_model(self) -> None:
            self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
            self.model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
            self.max_token_length = self.model.config.max_position_embeddings
            self.get_self_information = self._remembered

        def _remembered(self, text: str) -> tuple[list[str], list[float]]:
            tokens, values = MEMORY.get(text, lambda: self._get_self_info_via_gpt2(text))
            return list(tokens), list(values)

    selective_context = LocalSelectiveContext(model_type="gpt2", lang="en")

    def compress(request: dict) -> str:
        text, _ = selective_context(joined(request), reduce_ratio=1 - request["keep"], reduce_level="phrase")
        return text

    return compress


if __name__ == "__main__":
    serve("selective-context", load, memory=MEMORY)
