"""JoeyNMT trains a Transformer on numbers written as words, and prints the target tokens a second that it reports.

Usage: joeynmt_train.py FOLDER, which holds settings.json and train.src, train.trg, vocabulary.txt. JoeyNMT's own
program runs with its own configuration file. The first report is left out: it has the start in it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])
given = json.loads((folder / "settings.json").read_text())
layers = {
    "type": "transformer", "num_layers": given["layers"], "num_heads": given["heads"], "hidden_size": given["width"],
    "ff_size": given["inner"], "dropout": given["dropout"], "layer_norm": "pre",
    "embeddings": {"embedding_dim": given["width"], "scale": True, "dropout": given["dropout"]},
}  # fmt: skip
side = {"level": "word", "voc_file": str(folder / "vocabulary.txt"), "max_length": 200, "tokenizer_type": "none"}
config = {
    "name": "bench", "joeynmt_version": "2.3.0", "model_dir": str(folder / "model"), "use_cuda": False, "fp16": False,
    "random_seed": 1,
    "data": {
        "train": str(folder / "train"), "dev": str(folder / "train"), "dataset_type": "plain",
        "src": {"lang": "src", **side}, "trg": {"lang": "trg", **side},
        "special_symbols": {
            "unk_token": "<unk>", "unk_id": 0, "pad_token": "<pad>", "pad_id": 1,
            "bos_token": "<s>", "bos_id": 2, "eos_token": "</s>", "eos_id": 3,
        },
    },
    "testing": {"beam_size": 1},
    "training": {
        "optimizer": "adamw", "adam_betas": [0.9, 0.98], "learning_rate": 0.001, "normalization": "tokens",
        "scheduling": "warmupinversesquareroot", "learning_rate_warmup": 100, "learning_rate_min": 0.0,
        "clip_grad_norm": 1.0, "batch_type": "token", "batch_size": given["batch"], "batch_multiplier": 1,
        "label_smoothing": given["label_smoothing"], "loss": "crossentropy", "epochs": 100, "overwrite": True,
        "updates": given["steps"], "logging_freq": 5, "validation_freq": 10**6, "shuffle": True, "num_workers": 0,
        "early_stopping_metric": "loss", "weight_decay": 0.05,
    },
    "model": {
        "initializer": "xavier_uniform", "tied_embeddings": True, "tied_softmax": True,
        "encoder": layers, "decoder": layers,
    },
}  # fmt: skip
(folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
command = [sys.executable, "-m", "joeynmt", "train", folder / "config.yaml", "--skip-test"]
done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
told = [float(rate) for rate in re.findall(r"Tokens per Sec:\s+([\d.]+)", done.stdout + done.stderr)]
if len(told) < 2:
    sys.exit((done.stdout + done.stderr)[-3000:])
print(sum(told[1:]) / len(told[1:]))
