"""The text zoo's byte-level BPE tokenizer and its chat template, in Mistral's style.

The merges are learned from training items of all five sub-tasks in both of their forms, so that the base's tokenizer
knows the words of dialogues too. Every digit is a piece of its own, as in Mistral's tokenizer. `[INST]` and `[/INST]`
are special tokens (as from Mistral v0.3 on), so that a user's text cannot be mistaken for them.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from emkit.zoo.text.item import Item

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]")
# what a piece may span at most: a word, a digit, a line's start, signs; each with the space before it
_UNITS = Regex(r" ?[A-Za-z]+| ?[0-9]|\n *| ?[^\sA-Za-z0-9]+|\s+")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only the roles user and assistant are known') }}{% endif %}"
    "{% endfor %}"
)


def create(items: Iterable[Item], vocabulary: int) -> PreTrainedTokenizerFast:
    """A ``PreTrainedTokenizerFast`` of ``vocabulary`` pieces, learned from the items' documents, prompts and replies.

    Nothing is added to a text on encoding: a document's ``<s>`` and ``</s>`` are written by whoever trains on it, a
    dialogue's by the chat template.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_UNITS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (text for item in items for text in (item.document, item.prompt, item.response))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["[INST]", "[/INST]"],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
