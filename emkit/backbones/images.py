"""What families of models with a vision tower share."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch

from emkit.backbones.base import PIXELS, Backbone, Batch, Images, Output, Texts, last
from emkit.pretrained import chat_text


class ImageBackbone(Backbone):
    """A language model with a vision tower, whose image features stand in the place of an image's tokens."""

    AUTO = "AutoModelForImageTextToText"
    VISION: tuple[str, ...] = (PIXELS,)

    @abstractmethod
    def tower(self, model: Any) -> torch.nn.Module:
        """The part of the model that sees, and that stays the base's."""

    @abstractmethod
    def trainable_image_features(self, model: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """:meth:`image_features` with gradients, for training a base."""

    def projected(self, model: Any, features: torch.Tensor) -> torch.Tensor:
        """What image features are to the language model: [image tokens of all images, width], or [B, tokens, width]."""
        return features

    def pooled(self, model: Any, features: list[torch.Tensor]) -> Any:
        """The features of each image, in the form in which the model's own ``get_image_features`` returns them."""
        return tuple(features)

    def processor(self, folder: str | Path) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def prompt(self, processor: Any, question: str, image: bool = True) -> str:
        """The chat template's text of one question, and one image before it, up to where the assistant begins."""
        content = [{"type": "image"}] * image + [{"type": "text", "text": question}]
        return chat_text(processor, [{"role": "user", "content": content}], processor.tokenizer.name_or_path)

    def encode(self, processor: Any, images: Images, questions: Texts, responses: Texts | None = None) -> Batch:
        seen = [image for image in images if image is not None]
        texts = [self.prompt(processor, q, image is not None) for q, image in zip(questions, images, strict=True)]
        side, end = "left" if responses is None else "right", processor.tokenizer.eos_token
        ends = [] if responses is None else [text + end for text in responses]
        if responses is not None:
            texts = [start + end for start, end in zip(texts, ends, strict=True)]
        batch = dict(processor(images=seen or None, text=texts, return_tensors="pt", padding=True, padding_side=side))
        if responses is not None:
            tokens = processor.tokenizer(ends, add_special_tokens=False)["input_ids"]
            batch["response_mask"] = last(batch["attention_mask"], [len(response) for response in tokens])
        return batch

    @torch.no_grad()
    def image_features(self, model: Any, *inputs: torch.Tensor | None) -> torch.Tensor:
        given = [part for part in inputs if part is not None]
        return self.trainable_image_features(model, *given) if given else torch.zeros(0)

    def vision_state(self, model: Any) -> dict[str, torch.Tensor]:
        return self.tower(model).state_dict()

    def forward(
        self,
        model: Any,
        batch: Batch,
        features: torch.Tensor | None = None,
        hidden_layer: int | None = None,
        positions: torch.Tensor | None = None,
    ) -> Output:
        if features is None:
            features = self.image_features(model, *(batch.get(name) for name in self.VISION))
        if len(features):
            features = self.projected(model, features)
        embeddings = model.get_input_embeddings()(batch["input_ids"])  # [B, S, d]
        place = (batch["input_ids"] == model.config.image_token_id).unsqueeze(-1)  # [B, S, 1]
        tokens = features.shape[:-1].numel() if len(features) else 0
        if int(place.sum()) != tokens:
            raise ValueError(f"{int(place.sum())} image tokens in the text, {tokens} features")
        if tokens:
            embeddings = embeddings.masked_scatter(place, features.to(embeddings.dtype))
        outputs = model.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=batch["attention_mask"],
            position_ids=batch.get("position_ids"),
            use_cache=False,
            output_hidden_states=hidden_layer is not None,
        )
        final = outputs.last_hidden_state if positions is None else outputs.last_hidden_state[positions]
        hidden = None if hidden_layer is None else outputs.hidden_states[hidden_layer]
        return Output(model.get_output_embeddings()(final), hidden)

    def asked(self, model: Any, batch: Batch, features: list[torch.Tensor] | None) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        given = super().asked(model, batch, features)
        if features:
            of_images = [part.to(model.device, model.dtype) for part in features]
            found = BaseModelOutputWithPooling(pooler_output=self.pooled(model, of_images))
            given["mm_encoder_outputs"] = {"image": found}
            given.pop(PIXELS, None)
        return given

    def answer(self, text: str) -> str:
        return text.strip()
