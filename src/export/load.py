"""Loads the model in this directory into transformers; its layers differ in their numbers of heads and neurons.

    from load import load
    model = load()

The result is a torch module of the class that config.json names, in evaluation mode. Needs torch, transformers and
safetensors. A sublayer without units is given one whose weights are 0: it computes the same.
"""
import json
import pathlib

import torch
import transformers
from safetensors.torch import load_file

# Of each model type: where its layers are; query, key and value (or all three), attention output, up and down projection;
# the attention module; its attributes that hold the number of heads and the width of all heads.
FAMILIES = {
    "bert": ("encoder.layer", ["attention.self.query", "attention.self.key", "attention.self.value"],
             "attention.output.dense", "intermediate.dense", "output.dense",
             "attention.self", ["num_attention_heads"], ["all_head_size"]),
    "distilbert": ("transformer.layer", ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                   "attention.out_lin", "ffn.lin1", "ffn.lin2", "attention", ["n_heads"], ["dim"]),
    "gpt2": ("h", ["attn.c_attn"], "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
             "attn", ["num_heads"], ["split_size", "embed_dim"]),
    "opt": ("decoder.layers", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "self_attn.out_proj", "fc1", "fc2", "self_attn", ["num_heads"], ["embed_dim"]),
}
FAMILIES["roberta"] = FAMILIES["bert"]


def resize(module, inputs, outputs):
    """Gives a Linear or Conv1D another shape."""
    kind = module.weight
    shape = (inputs, outputs) if isinstance(module, transformers.pytorch_utils.Conv1D) else (outputs, inputs)
    module.weight = torch.nn.Parameter(kind.new_zeros(shape))
    if module.bias is not None:
        module.bias = torch.nn.Parameter(kind.new_zeros(outputs))
    for name, size in {"in_features": inputs, "out_features": outputs, "nx": inputs, "nf": outputs}.items():
        if hasattr(module, name):
            setattr(module, name, size)


def load(folder=pathlib.Path(__file__).parent):
    """The model of `folder`."""
    folder = pathlib.Path(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.pruned_heads = {}
    own = json.loads((folder / "config.json").read_text())["secateur"]
    name = config.architectures[0]
    more = {"add_pooling_layer": False} if name in ("BertModel", "RobertaModel") else {}
    model = getattr(transformers, name)(config, **more)
    hidden, head_dim = config.hidden_size, own["head_dim"]
    path, queries, output, up, down, attention, counts, totals = FAMILIES[config.model_type]
    layers = model.base_model.get_submodule(path)
    for layer, heads, neurons in zip(layers, own["heads_per_layer"], own["neurons_per_layer"], strict=True):
        width, neurons = max(heads, 1) * head_dim, max(neurons, 1)
        for query in queries:
            resize(layer.get_submodule(query), hidden, width * 3 // len(queries))
        resize(layer.get_submodule(output), width, hidden)
        resize(layer.get_submodule(up), hidden, neurons)
        resize(layer.get_submodule(down), neurons, hidden)
        for attribute in counts:
            setattr(layer.get_submodule(attention), attribute, max(heads, 1))
        for attribute in totals:
            setattr(layer.get_submodule(attention), attribute, width)
    weights = load_file(folder / "model.safetensors")
    model.to(next(iter(weights.values())).dtype)
    wrong = model.load_state_dict(weights, strict=False)
    gone = [i for i, (heads, neurons) in enumerate(zip(own["heads_per_layer"], own["neurons_per_layer"]))
            if heads == 0 or neurons == 0]
    empty = tuple(f"{path}.{i}." for i in gone)
    model.tie_weights()
    # What the file lacks is tied to something it has, or belongs to a sublayer without units.
    loaded = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in weights}
    lacking = [n for n, p in model.named_parameters(remove_duplicate=False)
               if n not in weights and id(p) not in loaded and not any(e in n for e in empty)]
    if lacking or wrong.unexpected_keys:
        raise ValueError(f"{folder}: lacks {lacking}, has no use for {wrong.unexpected_keys}")
    return model.eval()


if __name__ == "__main__":
    print(load())
