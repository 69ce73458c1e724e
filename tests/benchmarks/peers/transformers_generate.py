"""Hugging Face's `generate` decodes with a beam of 5 and prints the seconds it took.

The weights are random, so that no model is fetched.

Usage: transformers_generate.py SETTINGS.json, with sizes, sources as numbers and how many numbers to write for each.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import MarianConfig, MarianMTModel
from transformers.utils import logging

logging.set_verbosity_error()
given = json.loads(Path(sys.argv[1]).read_text())
torch.set_num_threads(given["threads"])
torch.manual_seed(1)
config = MarianConfig(
    vocab_size=given["vocabulary"], d_model=given["width"], max_position_embeddings=512,
    encoder_layers=given["layers"], decoder_layers=given["layers"], encoder_ffn_dim=given["inner"],
    decoder_ffn_dim=given["inner"], encoder_attention_heads=given["heads"], decoder_attention_heads=given["heads"],
    activation_function="relu", scale_embedding=True, share_encoder_decoder_embeddings=True, tie_word_embeddings=True,
    pad_token_id=0, eos_token_id=2, decoder_start_token_id=1, bos_token_id=1, forced_eos_token_id=None,
)  # fmt: skip
model = MarianMTModel(config).eval()
seconds, written = 0.0, 0
for batch in given["batches"]:
    longest = max(map(len, batch))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
    begin = time.perf_counter()
    found = model.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), num_beams=5, min_new_tokens=given["length"],
        max_new_tokens=given["length"], do_sample=False,
    )  # fmt: skip
    seconds += time.perf_counter() - begin
    written += found.shape[0] * (found.shape[1] - 1)
assert written == given["length"] * sum(map(len, given["batches"])), written
print(seconds)
