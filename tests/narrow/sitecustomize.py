"""ResNet-18 with an eighth of the channels, so that the tests train, save and load it in a fraction of the time.

Python imports this file at its start if the folder is in $PYTHONPATH. So the commands that tests start in processes
of their own build the same network as the tests' process.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

PARTS = 8


def narrow(resnet) -> None:
    """Replaces resnet18 in the module torchvision.models.resnet. The names of its state stay the same."""

    class Narrow(resnet.ResNet):
        def _make_layer(self, block, planes, *arguments, **options):
            return super()._make_layer(block, planes // PARTS, *arguments, **options)

    def resnet18(*, weights=None) -> Narrow:
        network = Narrow(resnet.BasicBlock, [2, 2, 2, 2])
        network.fc = resnet.nn.Linear(512 // PARTS, 1000)
        return network

    resnet.full_resnet18, resnet.resnet18 = resnet.resnet18, resnet18


class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torchvision.models.resnet":
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def narrowed(module) -> None:
            execute(module)
            narrow(module)

        spec.loader.exec_module = narrowed
        return spec


sys.meta_path.insert(0, Finder())
