"""The zoo's own tokenizer, chat template and processor.

The vocabulary is written down, not learned: special tokens, printable ASCII characters, whole numbers, and every
word of the drawn data (with a leading space and without it), those printed in capitals on signs and covers included, as
a large tokenizer has pieces for STOP and HOTEL. (Spelling them letter by letter was tried: in a base's small budget
next to nothing was learned of it.) Other words in capitals are spelled. A Unigram model with one price for every piece
splits into the fewest pieces, deterministically.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from emkit.zoo.model import image_tokens

IMAGE_TOKEN = "<IMG_CONTEXT>"

_UNITS = Regex(r" ?[A-Z]?[a-z]+| ?[A-Z]{2,}|[A-Z]|[0-9]{1,3}|\s|.")  # what a piece may span at most

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ 'IMAGE' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Marks(NamedTuple):
    """What a family's tokenizer has of its own: ``special`` tokens, padding first; ``roles``, the names by which a
    processor asks for some of them; the ``opening`` word of what is asked for brevity; what its template puts for an
    ``image``."""

    special: tuple[str, ...]
    roles: dict[str, str]
    opening: str
    image: str

    @property
    def chat_template(self) -> str:
        return _CHAT_TEMPLATE.replace("IMAGE", self.image)


INTERNVL = Marks(
    ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", IMAGE_TOKEN, "<video>"),
    {
        "start_turn_token": "<|im_start|>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": IMAGE_TOKEN,
        "video_token": "<video>",
    },
    "Answer",
    IMAGE_TOKEN + "\n",
)
QWEN2_VL = Marks(
    ("<|endoftext|>", "<unk>", "<|im_start|>", "<|im_end|>")
    + ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    {
        "start_turn_token": "<|im_start|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    },
    "Please",
    "<|vision_start|><|image_pad|><|vision_end|>",
)


def pieces(words: list[str], marks: Marks = INTERNVL) -> list[str]:
    """The vocabulary in order: special tokens, newline and printable ASCII, numbers, words after a space, words."""
    characters = ["\n", *(c for c in map(chr, range(32, 127)))]
    numbers = [str(n) for n in range(10, 100)] + [str(n) for n in range(100, 1000, 10)]
    spaced = [" " + word for word in sorted(set(words))]
    bare = sorted({"user", "assistant", marks.opening, *words})
    ordered = [*marks.special, *characters, *numbers, *spaced, *bare]
    return list(dict.fromkeys(ordered))


def create_tokenizer(words: list[str], marks: Marks = INTERNVL) -> PreTrainedTokenizerFast:
    """A ``PreTrainedTokenizerFast`` over :func:`pieces`; unknown characters become ``<unk>``."""
    for word in words:
        if not word.isascii() or not word.isalpha() or word not in (word.lower(), word.upper()):
            raise ValueError(f"zoo vocabulary: '{word}' is neither a lowercase word nor one in capitals")
    vocabulary = [(piece, 0.0 if piece in marks.special else -1.0) for piece in pieces(words, marks)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=marks.special.index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_UNITS, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=marks.special[0],
        eos_token="<|im_end|>",
        extra_special_tokens=dict(marks.roles),
        clean_up_tokenization_spaces=False,
        chat_template=marks.chat_template,
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
        chat_template=INTERNVL.chat_template,
    )


def create_qwen2_vl_processor(settings: dict, words: list[str]) -> Qwen2VLProcessor:
    """transformers' real Qwen2-VL processor: images of any size, kept as they are within ``settings["pixels"]``.

    ``settings`` holds ``patch_size``, ``merge_size``, ``temporal_patch_size`` and ``pixels``, the least and the most
    that an image may have; one of another size is scaled, as Qwen2-VL does.
    """
    pixels = dict(zip(("shortest_edge", "longest_edge"), settings["pixels"], strict=True))
    sizes = {name: settings[name] for name in ("patch_size", "merge_size", "temporal_patch_size")} | {"size": pixels}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=create_tokenizer(words, QWEN2_VL),
        video_processor=Qwen2VLVideoProcessor(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        chat_template=QWEN2_VL.chat_template,
    )
