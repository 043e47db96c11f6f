"""`SampleMemory`: a row for each training sample, in the checkpoint and the same on every rank."""

from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.ranks import global_batch


class SampleMemory(nn.Module):
    """Rows by the samples' `index`.

    Args:
        spec: The data's; its `index` says how many samples there are.
        rows: The rows' first values, [1, D] for all or [N, D].
    """

    rows: Tensor
    owner: Tensor

    def __init__(self, spec: dict[str, Any], rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.expand(samples_of(spec), -1).clone())
        self.register_buffer("owner", torch.zeros(32, dtype=torch.uint8))  # the data's fingerprint

    def forward(self, index: Tensor) -> Tensor:
        """The rows [..., D] of samples, float32."""
        return self.rows[index].float()

    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace the rows of this batch, [B, D], and those of the other ranks' batches."""
        self.rows[global_batch(index)] = global_batch(values.detach()).to(self.rows.dtype)

    def belong_to(self, datamodule: Any) -> None:
        """Note whose samples these are, once.

        Raises:
            UserError: They are other data's.
        """
        if not hasattr(datamodule, "fingerprint"):
            return
        owner = torch.tensor(list(bytes.fromhex(datamodule.fingerprint())), dtype=torch.uint8, device=self.owner.device)
        if self.owner.any() and not torch.equal(self.owner, owner):
            raise UserError(
                "The checkpoint remembers every sample of other training data than these: go on with the data that it "
                "was made on, or start anew."
            )
        self.owner.copy_(owner)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}rows")
        if saved is not None and saved.shape != self.rows.shape:
            raise UserError(
                f"The checkpoint remembers {len(saved)} samples, and the training data have {len(self.rows)}: go on "
                "with the data that it was made on, or start anew."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def samples_of(spec: dict[str, Any]) -> int:
    """The number of training samples.

    Raises:
        UserError: The data do not number them.
    """
    if "index" not in spec["keys"]:
        raise UserError("These data do not number their samples (`index`), which a memory of them needs.")
    return int(spec["keys"]["index"]["high"])
