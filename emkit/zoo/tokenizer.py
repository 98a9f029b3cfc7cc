"""The zoo's own tokenizer, chat template and processor.

The vocabulary is written down, not learned: special tokens, printable ASCII characters, whole numbers, and every
word of the drawn data (with a leading space and without it), those printed in capitals on signs and covers included, as
a large tokenizer has pieces for STOP and HOTEL. (Spelling them letter by letter was tried: in a base's small budget
next to nothing was learned of it.) Other words in capitals are spelled. A Unigram model with one price for every piece
splits into the fewest pieces, deterministically.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor, PreTrainedTokenizerFast

from emkit.zoo.model import image_tokens

IMAGE_TOKEN = "<IMG_CONTEXT>"
SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", IMAGE_TOKEN, "<video>")

_UNITS = Regex(r" ?[A-Z]?[a-z]+| ?[A-Z]{2,}|[A-Z]|[0-9]{1,3}|\s|.")  # what a piece may span at most

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pieces(words: list[str]) -> list[str]:
    """The vocabulary in order: special tokens, newline and printable ASCII, numbers, words after a space, words."""
    characters = ["\n", *(c for c in map(chr, range(32, 127)))]
    numbers = [str(n) for n in range(10, 100)] + [str(n) for n in range(100, 1000, 10)]
    spaced = [" " + word for word in sorted(set(words))]
    bare = sorted({"user", "assistant", "Answer", *words})
    ordered = [*SPECIAL, *characters, *numbers, *spaced, *bare]
    return list(dict.fromkeys(ordered))


def create_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A ``PreTrainedTokenizerFast`` over :func:`pieces`; unknown characters become ``<unk>``."""
    for word in words:
        if not word.isascii() or not word.isalpha() or word not in (word.lower(), word.upper()):
            raise ValueError(f"zoo vocabulary: '{word}' is neither a lowercase word nor one in capitals")
    vocabulary = [(piece, 0.0 if piece in SPECIAL else -1.0) for piece in pieces(words)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_UNITS, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens={
            "start_turn_token": "<|im_start|>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": IMAGE_TOKEN,
            "video_token": "<video>",
        },
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def create_processor(settings: dict, words: list[str]) -> InternVLProcessor:
    """transformers' real InternVL processor: one tile an image, resized to ``settings['image_size']`` pixels."""
    side = settings["image_size"]
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size={"height": side, "width": side}, crop_to_patches=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=create_tokenizer(words),
        video_processor=InternVLVideoProcessor(size={"height": side, "width": side}),
        image_seq_length=image_tokens(settings),
        chat_template=CHAT_TEMPLATE,
    )
