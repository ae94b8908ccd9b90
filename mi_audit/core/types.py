"""The tensor vocabulary. `b` images in a batch, `k` classes, `n` reconstructions, `d` features."""

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Images = Float[Tensor, "b c h w"]  # pixel values in [0, 1]; one channel (grey) or three (RGB)
Pixels = UInt8[Tensor, "b c h w"]  # the same, as they are stored: 0..255
Labels = Int[Tensor, " b"]  # class indices in [0, k)
Logits = Float[Tensor, "b k"]
Scores = Float[Tensor, "b k"]  # softmax of the logits: rows sum to 1
Features = Float[Tensor, "b d"]
Latents = Float[Tensor, "b *latent"]
PerSample = Float[Tensor, " b"]
Scalar = Float[Tensor, ""]
