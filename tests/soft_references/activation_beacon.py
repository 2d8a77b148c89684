"""Activation Beacon: beacons gather each window, and only they are remembered (Zhang et al. 2024, section 3).

One text at a time, position by position. A model is a dict of the decoder's weights and of the beacons' under the
names of the authors' checkpoints; a sink, the memory and the unfinished window are lists of positions, each with the
keys and values of all layers, before any rotation.
"""

import torch
from soft_references import llama

IGNORED = -100
BEACON = "beacon"


class Entry:
    """One position: a token or a beacon, and what the attention of each layer keeps of it."""

    def __init__(self, content):
        self.content = content
        self.keys = []
        self.values = []

    @property
    def is_beacon(self):
        return self.content == BEACON


class Reader:
    """Reads one text, chunk after chunk, and remembers what the method remembers.

    ``settings`` has the names of the configuration: window, placement, attention, attend_previous, sink_size,
    as_released. ``ratios`` yields the ratio of each window when it is needed: with interleaved beacons when the first
    token of a window comes, with appended ones when the last comes.
    """

    def __init__(self, weights, config, settings, ratios):
        self.weights, self.config, self.settings = weights, config, settings
        self.ratios = iter(ratios)
        self.sink, self.memory, self.raw = [], [], []
        self.ratio = None
        self.since_beacon = 0

    def read(self, ids):
        """Return the logits of those tokens that are in the last window."""
        ids = list(ids)
        while ids:
            room = self.settings["window"] - sum(not entry.is_beacon for entry in self.raw)
            logits = self.step(ids[:room])
            ids = ids[room:]
        return logits

    def step(self, ids, with_beacons=True):
        """Read tokens of one window."""
        n_tokens = sum(not entry.is_beacon for entry in self.raw) + len(ids)
        is_full = n_tokens == self.settings["window"]
        appends = self.settings["placement"] == "append"
        if with_beacons and self.ratio is None and (is_full or not appends):
            self.ratio = next(self.ratios)
        new = []
        for token in ids:
            new.append(Entry(int(token)))
            self.since_beacon += 1
            if with_beacons and not appends and self.ratio and self.since_beacon % self.ratio == 0:
                new.append(Entry(BEACON))
                self.since_beacon = 0
        if not self.ratio or appends:
            self.since_beacon = 0
        if with_beacons and appends and is_full and self.ratio:
            new += [Entry(BEACON) for _ in range(self.settings["window"] // self.ratio)]
        logits = self.run(new)
        was_empty = not self.memory
        size = self.settings["sink_size"]
        if self.settings["as_released"] and was_empty:
            self.sink = new[:size]
        self.raw = self.raw + new
        if is_full and with_beacons:
            kept = [entry for entry in self.raw if entry.is_beacon] if self.ratio else list(self.raw)
            if not self.settings["as_released"] and was_empty and not self.sink:
                self.sink = [entry for entry in self.raw if not entry.is_beacon][:size]
                kept = [entry for entry in kept if all(entry is not one for one in self.sink)]
            self.memory = self.memory + kept
            self.raw, self.ratio = [], None
        return logits

    def compress(self, ids, ratio):
        """What a window of any length becomes: its beacons, and the tokens that none of them stands for."""
        new = []
        for number, token in enumerate(ids, start=1):
            new.append(Entry(int(token)))
            if self.settings["placement"] == "interleave" and number % ratio == 0:
                new.append(Entry(BEACON))
        if self.settings["placement"] == "append":
            new += [Entry(BEACON) for _ in range(len(ids) // ratio)]
        self.ratio = ratio
        self.run(new)
        self.ratio = None
        tokens = [entry for entry in new if not entry.is_beacon]
        kept = [entry for entry in new if entry.is_beacon] + tokens[len(ids) // ratio * ratio :]
        self.memory = self.memory + kept
        return kept

    def positions(self, window):
        """Position of each entry of the window, the unfinished one and the new."""
        first = len(self.sink) + len(self.memory)
        places = []
        n_beacons = 0
        for entry in window:
            if self.settings["attention"] == "full-coverage" or not self.ratio:
                places.append(first + len(places))
            elif self.settings["placement"] == "interleave":
                # one more than the position before, but for the entry after a beacon, which is where the beacon is
                follows_beacon = bool(places) and window[len(places) - 1].is_beacon
                places.append((places[-1] + (0 if follows_beacon else 1)) if places else first)
            elif entry.is_beacon:
                n_beacons += 1
                last_visible = first + n_beacons * self.ratio - 1
                places.append(last_visible + (n_beacons if self.settings["attend_previous"] else 1))
            else:
                places.append(first + len(places))
        return places

    def sees(self, window, query, key):
        """Whether an entry of the window sees another one, by their places in it."""
        if query == key:
            return True
        if key > query:
            return False
        if self.settings["attention"] == "full-coverage":
            return True
        if self.settings["placement"] == "interleave":
            if self.settings["as_released"]:
                has_beacons = any(entry.is_beacon for entry in window)
                return not (has_beacons and key < 2)
            return not window[key].is_beacon
        if not window[query].is_beacon:
            return True
        if window[key].is_beacon:
            return self.settings["attend_previous"]
        number = sum(entry.is_beacon for entry in window[: query + 1])
        return key < number * self.ratio

    def run(self, new):
        """Fill in the new entries' keys and values, and return the logits of the tokens among them."""
        config, weights = self.config, self.weights
        before = self.sink + self.memory + self.raw
        window = self.raw + new
        n_context = len(self.sink) + len(self.memory)
        positions = torch.tensor(list(range(n_context)) + self.positions(window), dtype=torch.long)
        visible = torch.ones(len(new), len(before) + len(new), dtype=torch.bool)
        for row in range(len(new)):
            for column in range(len(window)):
                visible[row, n_context + column] = self.sees(window, len(self.raw) + row, column)
        n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
        theta, pairs, epsilon = llama.rope_theta(config), llama.half_rotation_pairs(width), config.rms_norm_eps

        table = weights["model.embed_tokens.weight"]
        beacon = weights["model.beacon_embed_tokens.weight"][0]
        hidden = torch.stack([beacon if entry.is_beacon else table[entry.content] for entry in new])
        for entry in new:
            entry.keys, entry.values = [], []
        for i in range(config.num_hidden_layers):
            layer = f"model.layers.{i}"
            normed = llama.rms_norm(hidden, weights[f"{layer}.input_layernorm.weight"], epsilon)
            queries, keys, values = (self.project(new, normed, f"{layer}.self_attn", name) for name in "qkv")
            for place, entry in enumerate(new):
                entry.keys.append(keys[place].reshape(n_kv_heads, width))
                entry.values.append(values[place].reshape(n_kv_heads, width))
            everything = before + new
            all_keys = torch.stack([entry.keys[i] for entry in everything])
            all_values = torch.stack([entry.values[i] for entry in everything])
            rotated_keys = llama.rotate(all_keys, positions, theta, pairs)
            queries = queries.reshape(len(new), n_heads, width)
            queries = llama.rotate(queries, positions[len(before) :], theta, pairs)
            attended = llama.attend(queries, rotated_keys, all_values, visible)
            hidden = hidden + self.project(new, attended, f"{layer}.self_attn", "o")

            normed = llama.rms_norm(hidden, weights[f"{layer}.post_attention_layernorm.weight"], epsilon)
            gate = torch.nn.functional.silu(llama.linear(normed, weights, f"{layer}.mlp.gate_proj"))
            up = llama.linear(normed, weights, f"{layer}.mlp.up_proj")
            hidden = hidden + llama.linear(gate * up, weights, f"{layer}.mlp.down_proj")
        hidden = llama.rms_norm(hidden, weights["model.norm.weight"], epsilon)
        of_tokens = [place for place, entry in enumerate(new) if not entry.is_beacon]
        return llama.logits(weights, hidden[of_tokens])

    def project(self, entries, inputs, prefix, name):
        """Project each position with the weights of its kind; beacons have their own of some projections."""
        rows = []
        for entry, row in zip(entries, inputs, strict=True):
            own = f"{prefix}.beacon_{name}_proj"
            is_own = entry.is_beacon and f"{own}.weight" in self.weights
            rows.append(llama.linear(row, self.weights, own if is_own else f"{prefix}.{name}_proj"))
        return torch.stack(rows)


def loss(weights, config, settings, ids, ratios):
    """Training loss of one text [N] that is its own labels: the last window has no beacons.

    Targets are shifted once, over the borders of windows; those of the first window do not count where beacons are
    appended or do not see everything.
    """
    reader = Reader(weights, config, settings, ratios)
    window = settings["window"]
    starts = range(0, len(ids), window)
    scores = torch.cat([reader.step(ids[one : one + window], with_beacons=one + window < len(ids)) for one in starts])
    counts_all = settings["placement"] == "interleave" and settings["attention"] == "full-coverage"
    counted = range(0 if counts_all else window, len(ids) - 1)
    losses = [-torch.log_softmax(scores[place], dim=0)[ids[place + 1]] for place in counted]
    return torch.stack(losses).mean(), scores
