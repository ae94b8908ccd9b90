"""Ask a model about one picture, as an attacker would: python examples/query_target.py model.safetensors face.png"""

import sys

import numpy as np
import torch
from PIL import Image

from mi_audit import load_target

model, picture = sys.argv[1:]
target = load_target(model)
with Image.open(picture) as image:
    pixels = np.asarray(image.convert("RGB"))
images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255  # 1 c h w, in [0, 1]

images.requires_grad_(True)
scores = target.logits(images).softmax(dim=1)
label = int(scores.argmax())
scores[0, label].log().backward()  # the weights are frozen; the gradient reaches the picture
assert images.grad is not None
print(f"class {label}, probability {scores[0, label].item():.3f}, gradient norm {float(images.grad.norm()):.3g}")
print(f"images asked about: {dict(target.ledger.spent)}")
