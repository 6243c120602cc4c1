"""TIGER's weights as a `transformers` T5: the reference of a test and the peer of a benchmark."""


def t5_with_the_weights_of(tiger):
    """A `T5ForConditionalGeneration` that computes what `tiger` computes."""
    import transformers

    config = tiger.config
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=tiger.embedding.num_embeddings,
            d_model=config.width,
            d_kv=config.head_width,
            d_ff=config.feed_forward,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            decoder_start_token_id=0,
            eos_token_id=None,
        )
    ).eval()
    weights = {
        "shared.weight": tiger.embedding.weight,
        "encoder.final_layer_norm.weight": tiger.encoder_norm.weight,
        "decoder.final_layer_norm.weight": tiger.decoder_norm.weight,
    }
    for side in ("encoder", "decoder"):
        bias = getattr(tiger, f"{side}_bias").weight
        name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weights[name] = bias
        for number, block in enumerate(getattr(tiger, side)):
            here = f"{side}.block.{number}.layer"
            query, key, value = block.attention.project.weight.chunk(3)
            weights |= {
                f"{here}.0.layer_norm.weight": block.attention.norm.weight,
                f"{here}.0.SelfAttention.q.weight": query,
                f"{here}.0.SelfAttention.k.weight": key,
                f"{here}.0.SelfAttention.v.weight": value,
                f"{here}.0.SelfAttention.o.weight": block.attention.out.weight,
            }
            last = 1
            if side == "decoder":
                key, value = block.cross.key_value.weight.chunk(2)
                weights |= {
                    f"{here}.1.layer_norm.weight": block.cross.norm.weight,
                    f"{here}.1.EncDecAttention.q.weight": block.cross.query.weight,
                    f"{here}.1.EncDecAttention.k.weight": key,
                    f"{here}.1.EncDecAttention.v.weight": value,
                    f"{here}.1.EncDecAttention.o.weight": block.cross.out.weight,
                }
                last = 2
            weights |= {
                f"{here}.{last}.layer_norm.weight": block.feed_forward.norm.weight,
                f"{here}.{last}.DenseReluDense.wi.weight": block.feed_forward.inner.weight,
                f"{here}.{last}.DenseReluDense.wo.weight": block.feed_forward.out.weight,
            }
    missing, unexpected = t5.load_state_dict(weights, strict=False)
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert set(missing) <= tied and not unexpected
    return t5


def encoder_input(tiger, history):
    """(1, S) tokens of the items of one history."""
    return (tiger.codes_NL[history] + tiger.first_tokens_L).flatten()[None]
