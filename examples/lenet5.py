"""LeNet-5 with ReLU and max pooling on 1x32x32 images: `--arch py:examples.lenet5:lenet5 --input-size 32`."""

from collections import OrderedDict

from torch import Tensor, nn


class LeNet5(nn.Module):
    """Three 5x5 convolutions and two linear layers (LeCun et al. 1998), named as in a public checkpoint."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convnet = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(1, 6, 5), relu1=nn.ReLU(), s2=nn.MaxPool2d(2),
                c3=nn.Conv2d(6, 16, 5), relu3=nn.ReLU(), s4=nn.MaxPool2d(2),
                c5=nn.Conv2d(16, 120, 5), relu5=nn.ReLU(),
            )
        )  # fmt: skip
        self.fc = nn.Sequential(OrderedDict(f6=nn.Linear(120, 84), relu6=nn.ReLU(), f7=nn.Linear(84, num_classes)))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.convnet(images).flatten(1))


def lenet5(num_classes: int = 10) -> nn.Module:
    """The network; its output are logits."""
    return LeNet5(num_classes)
