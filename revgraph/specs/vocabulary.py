"""The modules of torch.nn that a specification may name: no containers, and no loops over a size."""

from __future__ import annotations

from torch import nn


def _dimensions(*names: str) -> list[str]:
    """Each name with 1d, 2d and 3d after it."""
    return [f"{name}{dimension}d" for name in names for dimension in (1, 2, 3)]


NAMES = (
    *("Identity", "Linear", "Bilinear", "Embedding", "EmbeddingBag"),
    *_dimensions("Conv", "ConvTranspose"),
    *_dimensions("MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool"),
    *("FractionalMaxPool2d", "FractionalMaxPool3d"),
    *_dimensions("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"),
    *_dimensions("BatchNorm", "InstanceNorm"),
    *("SyncBatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "LocalResponseNorm", "CrossMapLRN2d"),
    *("Dropout", "AlphaDropout", "FeatureAlphaDropout", *_dimensions("Dropout")),
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "GLU"),
    *(
        "Sigmoid",
        "LogSigmoid",
        "Tanh",
        "Softplus",
        "Softsign",
        "Threshold",
        "Softmin",
        "Softmax",
        "Softmax2d",
    ),
    *("LogSoftmax", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Softshrink", "Tanhshrink"),
    *("MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer"),
    *("RNNCell", "GRUCell", "LSTMCell"),
    *("Flatten", "Unflatten", "Fold", "Unfold", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle"),
    *("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d"),
    *("CosineSimilarity", "PairwiseDistance"),
)
TORCH: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in NAMES if hasattr(nn, name)}
