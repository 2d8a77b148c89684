import subprocess
import sys

import torch
from command_line import Ran, assert_one_error
from official_layouts import icae_tensors, write_arc_release, write_auto_compressor, write_decoder
from safetensors.torch import save_file
from tiny_models import save_tokenizer

from kompakt.compressor.soft.checkpoint import read_checkpoint

CONVERT = ["models", "convert"]


def test_auto_compressor(tmp_path):
    write_auto_compressor(tmp_path / "release")
    ran = Ran([*CONVERT, "auto-compressor", tmp_path / "release", tmp_path / "made"])
    assert (ran.status, ran.out, ran.err) == (0, f"auto-compressor: converted, {tmp_path / 'made'}\n", "")
    assert read_checkpoint(tmp_path / "made").method == "auto-compressor"
    assert_one_error(Ran([*CONVERT, "auto-compressor", tmp_path / "release", tmp_path / "made"]), 2, "new folder")


def test_arc_encoder(tmp_path):
    write_arc_release(tmp_path / "release", widths=(32, 40), bridge="multi_module")
    for name, width in (("a", 32), ("b", 40)):
        write_decoder(tmp_path / name, width)
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(tmp_path / "tokenizer")
    arguments = [
        *CONVERT,
        "arc-encoder",
        tmp_path / "release",
        tmp_path / "made",
        "--tokenizer",
        tmp_path / "tokenizer",
    ]
    assert_one_error(Ran(arguments), 2, "needs --decoder")
    assert_one_error(Ran([*arguments, "--decoder", tmp_path / "a"]), 2, "2 decoders")
    ran = Ran([*arguments, "--decoder", tmp_path / "a", "--decoder", tmp_path / "b"])
    assert ran.status == 0, ran
    models = read_checkpoint(tmp_path / "made").models
    assert [models[f"decoder.{number}"].name for number in range(2)] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_icae(tmp_path):
    write_decoder(tmp_path / "base")
    save_file(icae_tensors(), tmp_path / "release.safetensors")
    arguments = [*CONVERT, "icae", tmp_path / "release.safetensors", tmp_path / "made", "--base", tmp_path / "base"]
    assert_one_error(Ran([*arguments, "--marker", "nothing"]), 2, "nothing", "ae, lm, ft, none")
    ran = Ran([*arguments, "--alpha", 16, "--marker", "ft"])
    assert ran.status == 0, ran
    settings = read_checkpoint(tmp_path / "made").settings
    assert (settings["marker"], settings["lora"]["alpha"]) == ("ft", 16.0)


def test_errors_are_one_line(tmp_path):
    write_auto_compressor(tmp_path / "release", change=lambda tensors: tensors.update({"x": torch.ones(1)}))
    arguments = [*CONVERT, "auto-compressor", tmp_path / "release", tmp_path / "made"]
    assert_one_error(Ran(arguments), 2, "not known: x")
    assert not (tmp_path / "made").exists()
    assert_one_error(Ran([*arguments, "--base", "x"]), 2, "takes no --base")
    assert_one_error(Ran([*CONVERT, "icae", tmp_path / "nothing", tmp_path / "made", "--base", "x"]), 2, "nothing")
    assert_one_error(Ran([*CONVERT, "gzip", tmp_path, tmp_path / "made"]), 2, "gzip", "arc-encoder")


def test_help_needs_no_torch():
    code = "import sys; from kompakt.compressor.cli import run; run(['models', 'convert', '--help']); " + (
        "from kompakt.compressor.models.official import convert; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
