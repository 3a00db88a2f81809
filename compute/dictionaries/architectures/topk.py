"""TopK: the k largest pre-activations of each row are active (Gao et al. 2024, 2406.04093)."""

from collections.abc import Mapping

from torch import Tensor

from compute.dictionaries.architectures.architecture import Normalization, Tensors
from compute.dictionaries.architectures.linear import LinearEncoder
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.kernels import Entries, entries_from_top, largest


class TopK(LinearEncoder):
    """The k strongest pre-activations of each row are kept, where positive."""

    name = "topk"

    def select(
        self, pre: Tensor, parameters: Tensors, buffers: Tensors, settings: DictionarySettings
    ) -> Entries:
        """The k largest of each row."""
        top = largest(pre, settings.k)
        return entries_from_top(top.values.relu(), top.indices)

    def publish(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], norm: Normalization
    ) -> tuple[str, Tensors]:
        """SAELens' topk."""
        return "topk", self._published(parameters, norm)
