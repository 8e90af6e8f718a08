"""github.com/jhhuang96/ConvLSTM-PyTorch (MIT): ConvLSTM and ConvGRU encoder-forecasters."""

from __future__ import annotations

from typing import Any

from nowcast.models.convlstm import ConvGRU, ConvLSTM
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Source, State, renamed

# Stages are counted from 1, and named after what they do; "leaky" in a name means an activation.
STAGES = {
    r"^up\.0\.0\.": "decoder.stage1.conv3_leaky_1.",
    r"^up\.0\.2\.": "decoder.stage1.conv4_leaky_1.",
    r"^up\.1\.0\.": "decoder.stage2.deconv2_leaky_1.",
    r"^up\.2\.0\.": "decoder.stage3.deconv1_leaky_1.",
} | {
    rule: official
    for n in (1, 2, 3)
    for rule, official in {
        rf"^down\.{n - 1}\.0\.": f"encoder.stage{n}.conv{n}_leaky_1.",
        rf"^encoder\.{n - 1}\.": f"encoder.rnn{n}.",
        rf"^forecaster\.{n - 1}\.": f"decoder.rnn{n}.",
    }.items()
}
LSTM_CELL = {r"gates\.conv": "conv.0", r"gates\.norm": "conv.1"}
GRU_CELL = {
    r"gates\.conv": "conv1.0",
    r"gates\.norm": "conv1.1",
    r"candidate\.conv": "conv2.0",
    r"candidate\.norm": "conv2.1",
}


def _lstm_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, STAGES | LSTM_CELL)


def _gru_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, STAGES | GRU_CELL)


def _options(tensors: State, config: Config) -> dict[str, Any]:
    first, channels = tensors["encoder.stage1.conv1_leaky_1.weight"].shape[:2]
    # The layer after a cell takes its hidden state, so its input is as wide as the cell.
    finest = tensors["decoder.stage1.conv3_leaky_1.weight"].shape[1]
    coarser = [tensors[f"decoder.stage{n}.deconv{4 - n}_leaky_1.weight"].shape[0] for n in (2, 3)]
    kernel = next(tensor for name, tensor in tensors.items() if name.startswith("encoder.rnn1.") and tensor.ndim == 4)
    return {
        "in_steps": config.get("T_in", 10),
        "out_steps": config.get("T_out", 10),
        "channels": channels,
        "first_width": first,
        "widths": (finest, *coarser),
        "kernel": kernel.shape[-1],
    }


CONVLSTM = Source(ConvLSTM, _options, _lstm_names)
CONVGRU = Source(ConvGRU, _options, _gru_names)
