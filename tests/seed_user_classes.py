"""The seed document's three example classes as a user writes them; bodies that it leaves empty are filled in."""

# Written as the document writes them, not as this project would.
# ruff: noqa: B006, N812, UP008, UP032
# fmt: off

from datetime import datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch import optim as optimization

from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.images import decode
from dnnbench.models.torch import NeuralNetwork
from dnnbench.training.torch import DNNTrain


class MyDataset(RandomAccessDataset):
    """User defined dataset class."""

    def __init__(self, config={}):
        super(MyDataset, self).__init__(transform=None,
                                        config=config)

    def read_file_system_data(self, image):
        return decode(Path(image).read_bytes(), self.image_dimension)

    def read_s3_object(self, image):
        data = self.storage.read(image)
        return torch.from_numpy(decode(data, (self.image_height, self.image_width)))


class ConvNet(NeuralNetwork):
    """Expected a image dimesion of 32x32 because of tensor size."""

    def __init__(self, image_diments=()):
        super(ConvNet, self).__init__()
        self.input_image_height = int(image_diments[0])
        self.input_image_weidth = int(image_diments[1])
        self.network()

    def network(self):
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = x.unsqueeze(1)
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


class RandomAccessDatasetTrain(DNNTrain):
    """Example of training for MapStyle dataset."""

    def __init__(self, **kwargs):
        self.config = kwargs["config"]
        self.train_dataloader = kwargs["dataloader"]
        super(RandomAccessDatasetTrain,self).__init__(config=self.config,
                                       model=kwargs["model"],
                                       device=kwargs["device"])

    def train(self):
        start_time = datetime.now()
        print(f"INFO: Training started! {start_time}")
        criterion = self.model.loss_function()
        optimizer = optimization.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        for epoch in range(self.epochs):
            running_loss = 0.0
            for batch_index, data in enumerate(self.train_dataloader, 0):
                images, labels = data
                images = images.float()
                optimizer.zero_grad()
                outputs = self.model(images)
                loss = criterion(outputs, labels)
                loss.backward()
                optimizer.step()
                running_loss += loss.item()
                if batch_index % self.max_batch_size == 0:
                    print(f"Epoch:{epoch + 1}, BatchIndex:{batch_index} loss: {running_loss / self.max_batch_size:.3f}")
                    running_loss = 0.0
        print("INFO: Training is done : {} seconds".format((datetime.now() - start_time).seconds))
