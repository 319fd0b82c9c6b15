"""Write the tokenizer of `builtin:tiny`: `python tests/make_tokenizer.py`. Run once; its file is committed.

A byte-level BPE of 512 tokens, trained on what prompts are made of, so that prompts are short and no text is unknown.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from forecaster.language_models.tiny import TOKENIZER
from forecaster.model.prompt import static_text

VOCABULARY = 512
WORDS = """hourly daily weekly monthly quarterly yearly minute minutes hour hours day days week month
year seconds electricity transformer temperature oil load power energy demand price prices sales traffic weather
exchange rate rates wind solar humidity pressure sensor sensors measurement measurements store stores item items unit
units count series values the of and in to a is for from with per each by at on data dataset time past future next
last two station region country"""


def main() -> None:
    """Train and write it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    numbers = [f" {tenths / 10:.1f}" for tenths in range(-40, 41)] + [f" {lag}" for lag in range(1, 400)]
    texts = [static_text("", lookback, 96) for lookback in (96, 336, 512)] * 20
    texts += [f" {word}" for word in (*WORDS.split(), "up", "down", "flat")] * 4
    tokenizer.train_from_iterator(texts + numbers, trainer)
    TOKENIZER.parent.mkdir(exist_ok=True)
    tokenizer.save(str(TOKENIZER))


if __name__ == "__main__":
    main()
