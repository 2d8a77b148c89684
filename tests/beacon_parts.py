"""What the tests of Activation Beacon share: small models with random beacons, and their weights."""

import dataclasses

import torch
from soft_references import activation_beacon as reference

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.cache.beacon_module import BeaconModule
from kompakt.compressor.soft.decoder import load_decoder

WINDOW = 16

LAYOUTS = {
    "interleave": {},
    "append": {"placement": "append"},
    "append-steps": {"placement": "append", "attention": "step-expansion"},
    "first-version": {
        "placement": "append",
        "attention": "step-expansion",
        "attend_previous": False,
        "params": ("q", "k", "v", "o"),
    },
    "hidden-beacons": {"attention": "step-expansion", "attend_previous": False},
}
"""Every way in which beacons may stand and see."""


def config_of(**options):
    return BeaconConfig(**{"window": WINDOW, "ratios": (2, 4, 8)} | options)


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.trainable().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return module.eval()


def module_of(folder, *, dtype="float32", **options):
    return randomised(BeaconModule(load_decoder(folder, dtype=dtype, device="cpu"), config_of(**options)))


def weights_of(module):
    return {**module.lm.model.state_dict(), **module.trainable()}


def reference_of(module, ratios):
    """A reader of one text with the same weights."""
    weights = {name: tensor.detach() for name, tensor in weights_of(module).items()}
    return reference.Reader(weights, module.lm.model.config, dataclasses.asdict(module.config), ratios)


def ids_of(n_rows, n_tokens, seed=0):
    return torch.randint(1, 250, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def keys_of(entries):
    """What the reference remembers, as ``[L, H_kv, m, D_head]``: keys and values."""
    keys = torch.stack([torch.stack(entry.keys) for entry in entries], dim=2)
    return keys, torch.stack([torch.stack(entry.values) for entry in entries], dim=2)
