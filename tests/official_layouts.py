"""Tiny random weights in the layouts in which the authors of soft compressors released theirs."""

import json

import torch
import yaml
from safetensors.torch import save_file
from tiny_models import save_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, INNER, LAYERS, HEADS, VOCABULARY = 32, 48, 2, 4, 258
POSITIONS = 256
SLOTS = 3
"""Summary vectors of an AutoCompressor, and memory slots of an ICAE."""

TEXT = "The treaty of Vienna was signed by nine states after months of talks, and few of them kept it for long. " * 3


def random(shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.3).to(dtype) for name, shape in shapes.items()}


def save_torch(tensors, file, legacy=False):
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)


def write_weights(folder, tensors, form):
    """Write a state dict as ``safetensors``, ``bin``, ``bin-legacy``, ``safetensors-shards`` or ``bin-shards``."""
    kind, _, rest = form.partition("-")
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    save = save_file if kind == "safetensors" else lambda *args: save_torch(*args, legacy=rest == "legacy")
    if rest != "shards":
        save(tensors, folder / f"{stem}{suffix}")
        return
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")


def llama_shapes(kv_width):
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{prefix}self_attn.k_proj.weight": (kv_width, WIDTH),
            f"{prefix}self_attn.v_proj.weight": (kv_width, WIDTH),
            f"{prefix}self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{prefix}mlp.gate_proj.weight": (INNER, WIDTH),
            f"{prefix}mlp.up_proj.weight": (INNER, WIDTH),
            f"{prefix}mlp.down_proj.weight": (WIDTH, INNER),
            f"{prefix}input_layernorm.weight": (WIDTH,),
            f"{prefix}post_attention_layernorm.weight": (WIDTH,),
        }
    return shapes | {"lm_head.weight": (VOCABULARY, WIDTH)}


def opt_shapes():
    root = "model.decoder."
    shapes = {
        f"{root}embed_tokens.weight": (VOCABULARY, WIDTH),
        f"{root}embed_positions.weight": (POSITIONS + 2, WIDTH),
    }
    norms = [f"{root}final_layer_norm"]
    linear = {}
    for layer in range(LAYERS):
        prefix = f"{root}layers.{layer}."
        linear |= {f"{prefix}self_attn.{one}": (WIDTH, WIDTH) for one in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linear |= {f"{prefix}fc1": (INNER, WIDTH), f"{prefix}fc2": (WIDTH, INNER)}
        norms += [f"{prefix}self_attn_layer_norm", f"{prefix}final_layer_norm"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    return shapes


def auto_compressor_config(kind, **changes):
    config = {
        "model_type": kind,
        "architectures": ["AutoCompressorModel" if kind == "opt" else "LlamaAutoCompressorModel"],
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": POSITIONS,
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "summary_length": SLOTS,
        "accumulate_summary": True,
        "segment_gradient_checkpointing": False,
        "torch_dtype": "float32",
    }
    if kind == "opt":
        config |= {"ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "pad_token_id": 1, "do_layer_norm_before": True}
    else:
        config |= {"intermediate_size": INNER, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
        config["num_key_value_heads"] = 2 if kind == "mistral" else HEADS
    return config | changes


def write_auto_compressor(folder, kind="llama", form="safetensors", *, change=None, **config):
    """Write a release, and return its tensors; ``change`` alters them before they are written."""
    folder.mkdir()
    save_tokenizer(folder)
    settings = auto_compressor_config(kind, **config)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    shapes = opt_shapes() if kind == "opt" else llama_shapes(WIDTH // 2 if kind == "mistral" else WIDTH)
    tensors = random(shapes | {"embed_summary.weight": (SLOTS, WIDTH)})
    if kind == "opt":
        # the files of the release hold the tied head too
        tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    else:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if change:
        change(tensors)
    write_weights(folder, tensors, form)
    return tensors


def write_decoder(folder, width=WIDTH, **settings):
    """Write an ordinary model that reads what others compress."""
    folder.mkdir()
    sizes = {"hidden_size": width, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    save_tokenizer(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0, **settings)).save_pretrained(folder)
    return folder


ARC_LAYERS, TRUNCATED, KV_HEADS, THETA = 3, 1, 2, 5000.0
RANK = 12


def arc_shapes(widths=(WIDTH,), bridge="mlp", special=("cont", "rec")):
    shapes = {"embedder.tok_embeddings.weight": (VOCABULARY, WIDTH)}
    kv_width = WIDTH // HEADS * KV_HEADS
    for layer in range(ARC_LAYERS - TRUNCATED):
        prefix = f"embedder.layers.{layer}."
        shapes |= {
            f"{prefix}attention.wq.weight": (WIDTH, WIDTH),
            f"{prefix}attention.wk.weight": (kv_width, WIDTH),
            f"{prefix}attention.wv.weight": (kv_width, WIDTH),
            f"{prefix}attention.wo.weight": (WIDTH, WIDTH),
            f"{prefix}attention_norm.weight": (WIDTH,),
            f"{prefix}ffn_norm.weight": (WIDTH,),
            f"{prefix}feed_forward.w1.weight": (INNER, WIDTH),
            f"{prefix}feed_forward.w2.weight": (WIDTH, INNER),
            f"{prefix}feed_forward.w3.weight": (INNER, WIDTH),
        }
    for number, width in enumerate(widths):
        prefix = f"bridge_module.{number}." if bridge == "multi_module" else "bridge_module."
        if bridge == "linear":
            shapes[f"{prefix}layer1.weight"] = (width, WIDTH)
        else:
            shapes |= {f"{prefix}layer1.weight": (RANK, WIDTH), f"{prefix}layer2.weight": (width, RANK)}
        if bridge == "rms":
            shapes[f"{prefix}norm.weight"] = (WIDTH,)
        shapes |= {f"embedder.{kind}_tok.{number}.weight": (1, WIDTH) for kind in special}
    return shapes


def arc_config(bridge="mlp", special=("cont", "rec"), width=WIDTH, **embedder):
    """Return the two parts of a configuration that describe the method."""
    own = {
        "n_truncated_layers": TRUNCATED,
        "pooling_module": {"pool_type": "mean_pooled_queries", "where": "before"},
        "memory_tokens": 0,
        "rec_tok": "rec" in special,
        "cont_tok": "cont" in special,
        "compress_rates": [-8],
        "trained_layers": ARC_LAYERS,
        "causal_embedder": False,
        "train_embedding_mtx": True,
    }
    return own | embedder, {"bridge_type": bridge, "in_dim": WIDTH, "out_dim": width, "hidden_dim": RANK}


META_ARGS = {
    "dim": WIDTH,
    "n_layers": ARC_LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "norm_eps": 1e-5,
    "rope_theta": THETA,
    "vocab_size": VOCABULARY,
    "use_scaled_rope": True,
}


def write_arc_release(folder, *, widths=(WIDTH,), bridge="mlp", special=("cont", "rec"), change=None, **embedder):
    """Write a public release: all weights in one file, and a yaml file."""
    folder.mkdir()
    tensors = random(arc_shapes(widths, bridge, special))
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors")
    own, bridge_args = arc_config(bridge, special, widths[0], **embedder)
    config = {"embedder_args": own, "bridge_args": bridge_args, "model_args": META_ARGS, "param_dtype": "float32"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return tensors


def write_arc_run(folder, *, widths=(WIDTH,), bridge="mlp", old_names=False, step=20):
    """Write a checkpoint of a training run: the prefixes are those of folders."""
    place = folder / "checkpoints" / f"checkpoint_{step:06d}"
    (place / "embedder").mkdir(parents=True)
    (place / "bridge_module").mkdir()
    tensors = random(arc_shapes(widths, bridge), seed=step)
    for kind in ("embedder", "bridge_module"):
        own = {name.removeprefix(f"{kind}."): one for name, one in tensors.items() if name.startswith(f"{kind}.")}
        if old_names:
            own = {name.replace("_tok.0.", "_tok."): one for name, one in own.items()}
        save_file(own, place / kind / "consolidated.safetensors")
    embedder, bridge_module = arc_config(bridge)
    params = {"param_dtype": "float32", "embedder_params": embedder, "bridge_module": bridge_module}
    (place / "params.json").write_text(json.dumps(params), encoding="utf-8")
    (folder / "args.yaml").write_text("seed: 0\n", encoding="utf-8")
    return tensors


ICAE_RANK = 5


def icae_tensors(with_base=False, rank=ICAE_RANK):
    root = "icae.base_model.model.model.layers."
    shapes = {"memory_token_embed.weight": (SLOTS + 3, WIDTH)}
    for layer in range(LAYERS):
        for name, width in (("q_proj", WIDTH), ("v_proj", WIDTH // HEADS * 2)):
            prefix = f"{root}{layer}.self_attn.{name}."
            shapes |= {
                f"{prefix}lora_A.default.weight": (rank, WIDTH),
                f"{prefix}lora_B.default.weight": (width, rank),
            }
            if with_base:
                shapes[f"{prefix}base_layer.weight"] = (width, WIDTH)
    if with_base:
        shapes |= {
            "icae.base_model.model.model.embed_tokens.weight": (VOCABULARY + SLOTS + 4, WIDTH),
            "icae.base_model.model.lm_head.weight": (VOCABULARY + SLOTS + 4, WIDTH),
        }
    return random(shapes)
