"""What a model writes, as the harness is given it."""

from pathlib import Path

from tests import tiny
from tools.evaluation import harness
from tools.evaluation.options import EvalOptions


def test_the_first_blank_of_an_answer_is_kept_where_the_tokenizers_decoder_strips_it(tmp_path: Path) -> None:
    """Llama-2's tokenizer. Without a last norm all logits are 0, so the model writes token 0, which begins with one."""
    import torch
    from lm_eval.api.instance import Instance
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["▁return", "<s>", "</s>", "▁▁▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    folder = tmp_path / "sentencepiece"
    model = tiny.hf_model(tiny.hf_config(vocab_size=len(tokens)))
    with torch.no_grad():
        model.model.norm.weight.zero_()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    loaded = harness.load_model(folder, EvalOptions(device="cpu"))
    asked = ("def add(a, b):\n", {"until": ["\ndef"], "max_gen_toks": 3, "do_sample": False})
    request = Instance(request_type="generate_until", doc={}, arguments=asked, idx=0)
    assert loaded.generate_until([request]) == [" return return return"]
    assert loaded.tok_decode([3, 0, 2]) == "    return"  # a whole indentation; the control token is none of it
    assert tokenizer.decode([3, 0]) == "   return"  # what the harness would have taken
