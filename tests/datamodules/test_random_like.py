import torch

from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.random_like import RandomLike


def test_values_follow_the_spec_and_repeat():
    spec = FashionMNIST().spec
    spec["keys"]["noise"] = {"dtype": "float16", "shape": [3], "low": -2.0, "high": -1.0}
    data = RandomLike(spec, samples=6, batch_size=4)
    assert data.spec == spec
    batches = list(data.train_dataloader())
    assert [len(batch["label"]) for batch in batches] == [4, 2]
    for key, entry in spec["keys"].items():
        value = batches[0][key]
        assert value.dtype == getattr(torch, entry["dtype"])
        assert list(value.shape[1:]) == entry["shape"]
        assert value.min() >= entry["low"]
        assert value.max() < entry["high"] or value.dtype == torch.float16  # -1 is what rounding can reach
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(6))  # round the ten classes
    assert torch.equal(batches[0]["image"], next(iter(data.train_dataloader()))["image"])
    images = [
        next(iter(loader()))["image"] for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    ]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])
    assert torch.equal(next(iter(data.predict_dataloader()))["image"], images[2])
