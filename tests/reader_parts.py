"""What the tests of the local reader share: prompts, and a twin that reads everything again for every token."""

import tokenizers
import torch
import transformers

from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.types import TextPart


def reader_of(folder, **options):
    return TransformersBackend(folder, "float32", "cpu", **options)


def part(text):
    return TextPart(text, (), ())


def ask(*parts, is_chat=False, **options):
    """A text to be continued; texts among the parts may be plain strings."""
    return Prompt(tuple(part(one) if isinstance(one, str) else one for one in parts), is_chat=is_chat, **options)


class Twin:
    """The same model without a cache, from everything it was given, one call a token.

    What it reads are lists of tokens and tensors of vectors, one behind the other.
    """

    def __init__(self, folder, **options):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def embeds(self, *items):
        table = self.model.get_input_embeddings()
        return torch.cat([one if torch.is_tensor(one) else table(torch.tensor(one)) for one in items]).detach()

    def output(self, *items, positions=None, **options):
        """What the model says of tokens alone, or of the embeddings of everything if there are vectors."""
        if any(map(torch.is_tensor, items)):
            options["inputs_embeds"] = self.embeds(*items)[None]
        else:
            options["input_ids"] = torch.tensor([[token for one in items for token in one]])
        if positions is not None:
            options["position_ids"] = torch.tensor([positions])
        options["attention_mask"] = torch.ones(1, sum(map(len, items)))
        with torch.no_grad():
            return self.model(**options)

    def logits(self, *items, **options):
        return self.output(*items, use_cache=False, **options).logits[0]

    def log_p(self, *items):
        return torch.log_softmax(self.logits(*items).double(), -1)

    def greedy(self, *items, n, ends=(0,)):
        answer = []
        while len(answer) < n:
            token = int(self.logits(*items, *([answer] if answer else []))[-1].argmax())
            if token in ends:
                break
            answer.append(token)
        return answer

    def likelihood(self, ids, target):
        rows = self.log_p([*ids, *target])
        return sum(float(rows[len(ids) + index - 1, token]) for index, token in enumerate(target))

    def cache(self, ids):
        """The model's own keys and values of tokens from position 0 on, one tensor ``[H_kv, m, D_head]`` a layer."""
        made = new_cache()
        self.output(ids, **cache_argument(self.model, made), use_cache=True)
        return [layer.keys[0] for layer in made.layers], [layer.values[0] for layer in made.layers]

    def generated(self, prompts, n, **options):
        """What the library's own loop writes after each prompt, up to the end."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        made = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0, **options
        )  # fmt: skip
        ends = self.model.generation_config.eos_token_id
        return [_until(row[width:].tolist(), ends if isinstance(ends, list) else [ends]) for row in made]


def _until(tokens, ends):
    return next((tokens[:index] for index, token in enumerate(tokens) if token in ends), tokens)
