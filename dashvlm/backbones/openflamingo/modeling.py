"""OpenFlamingo as a native transformers model: no remote code, no state kept in layers.

Parity with the reference implementation is tested on golden tensors (logits, loss, gradients,
greedy and beam search). Shapes: B batch, T images, N patches, L text tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from dashvlm.backbones.openflamingo.configuration import OpenFlamingoConfig
from dashvlm.backbones.openflamingo.layers import FlamingoBlock, Gate, PerceiverResampler, bias_free_norm
from dashvlm.config.imports import configurable


class OpenFlamingoPreTrainedModel(PreTrainedModel):
    """Weights and what transformers needs to know about them."""

    config_class = config = OpenFlamingoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FlamingoBlock", "CLIPEncoderLayer", "PerceiverResampler"]  # noqa: RUF012
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Gate):
            init.zeros_(module.weight)
        elif isinstance(module, PerceiverResampler):
            init.normal_(module.latents)


class OpenFlamingoModel(OpenFlamingoPreTrainedModel):
    """Everything but the head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        text = config.text_config
        self.vision_encoder = CLIPVisionModel._from_config(config.vision_config)
        self.perceiver = PerceiverResampler(config.vision_config.hidden_size, config)
        self.wte = nn.Embedding(text.vocab_size, text.d_model)
        self.blocks = nn.ModuleList(FlamingoBlock(config, i) for i in range(text.n_layers))
        self.norm_f = bias_free_norm(text.d_model, text.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table."""
        self.wte = value

    def get_image_features(self, pixel_values: Tensor, return_dict: bool = False) -> Any:
        """[B, T, 3, H, W] -> [B, T, latents, Dv]; with ``return_dict`` as ``pooler_output``, as other families do."""
        frozen = not any(p.requires_grad for p in self.vision_encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            tokens = self.vision_encoder(pixel_values=pixel_values.flatten(0, 1)).last_hidden_state
            if self.config.vision_post_layernorm:
                tokens = self.vision_encoder.post_layernorm(tokens)
        found = self.perceiver(tokens[:, 1:]).unflatten(0, pixel_values.shape[:2])
        return BaseModelOutputWithPooling(pooler_output=found) if return_dict else found

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_time: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the network.

        Args:
            input_ids: [B, L].
            pixel_values: [B, T, 3, H, W], or None with ``image_hidden_states``.
            image_hidden_states: [B, T, latents, Dv], already encoded.
            attention_mask: [B, past + L].
            text_time: [B, L], number of images up to each token; from ``input_ids`` if None.
            past_key_values: a cache.
            use_cache: make a cache.
            kwargs: ignored.
        """
        media = image_hidden_states
        if media is None:
            assert pixel_values is not None, "give pixel_values or image_hidden_states"
            media = self.get_image_features(pixel_values)
        if text_time is None:
            text_time = (input_ids == self.config.image_token_id).cumsum(-1)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        x = self.wte(input_ids)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        bias = self._bias(x, past, attention_mask)
        for block in self.blocks:
            x = block(x, media, text_time, bias, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm_f(x), past_key_values=past_key_values)

    def _bias(self, x: Tensor, past: int, attention_mask: Tensor | None) -> Tensor:
        """ALiBi and the causal and padding masks, [1 or B, heads, L, past + L]."""
        queries, keys = x.shape[1], x.shape[1] + past
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=x.device).tril(past)[None, None]
        if attention_mask is not None:
            allowed = allowed & attention_mask.bool()[:, None, None, :keys]
        text: Any = self.config.text_config
        alibi = build_mpt_alibi_tensor(text.n_heads, keys, text.attn_config.alibi_bias_max, device=x.device)
        # A value that 16-bit attention can still hold: -inf in a whole row would give nan.
        lowest = max(torch.finfo(x.dtype).min, torch.finfo(torch.bfloat16).min)
        return alibi[None].to(x.dtype).masked_fill(~allowed, lowest)


@configurable("backbone")
class OpenFlamingoForConditionalGeneration(OpenFlamingoPreTrainedModel, GenerationMixin):
    """The network with its tied language head."""

    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.wte.weight"}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = OpenFlamingoModel(config)
        self.lm_head = nn.Linear(config.text_config.d_model, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.model.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table."""
        self.model.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        """The language head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_time: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, L, vocabulary], and the mean loss over labels that are not -100."""
        # generate() looks its arguments up in this signature, so they are spelled out.
        out = self.model(
            input_ids,
            pixel_values=pixel_values,
            image_hidden_states=image_hidden_states,
            attention_mask=attention_mask,
            text_time=text_time,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = out.last_hidden_state
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, image_hidden_states: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add the encoded images and the image count of each new token."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        # From the full prefix: right for cached steps and for reordered beams alike.
        time = (input_ids == self.config.image_token_id).cumsum(-1)
        inputs["image_hidden_states"] = image_hidden_states
        inputs["text_time"] = time[:, -inputs["input_ids"].shape[1] :]
        return inputs

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate; images are encoded once, before beams are expanded. A new ``<image>`` is forbidden."""
        if pixel_values is not None:
            kwargs["image_hidden_states"] = self.model.get_image_features(pixel_values)
        kwargs.setdefault("bad_words_ids", [[self.config.image_token_id]])
        kwargs.setdefault("eos_token_id", self.config.eoc_token_id)
        return super().generate(input_ids=input_ids, **kwargs)
