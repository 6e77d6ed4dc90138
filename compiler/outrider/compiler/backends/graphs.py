"""What backends have in common whose artifacts are an engine's own files, the same on every machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from outrider.compiler.backends import Built, Candidate, Order
from outrider.compiler.model import OnnxGraph
from outrider.runtime.engines import ENGINES
from outrider.runtime.target import Target

NO_GRAPH = "the model is not an ONNX graph, which is what this backend takes"


class GraphBackend(ABC):
    """ONNX graphs for the engine of that line of `ENGINES`, which a message calls by its `title`."""

    isolated = True
    engine: str
    title: str

    @abstractmethod
    def offers(self) -> Sequence[Candidate]:
        """Every candidate that there is."""

    @abstractmethod
    def build(self, order: Order, candidate: Candidate) -> Built:
        """As `Backend.build`."""

    def refuses(self, order: Order) -> str | None:
        """Anything but an ONNX graph, and targets that the engine is not packaged for."""
        if not isinstance(order.model.payload, OnnxGraph):
            return NO_GRAPH
        if order.target.arch not in ENGINES[self.engine].archs:
            return f"{self.title} has no package for {order.target.arch}"
        return None

    def allowed(self, order: Order) -> list[Candidate]:
        """What is offered in the precisions that may be tried."""
        return [one for one in self.offers() if order.allows(one.precision)]

    def recall(self, order: Order, precision: str, options: Mapping[str, str]) -> Candidate | None:
        """One of what is offered."""
        return next((one for one in self.offers() if (one.precision, one.options) == (precision, options)), None)

    def faithful(self, order: Order) -> Candidate | None:
        """There is no other way of computing in such an engine."""
        return None

    def twin(self, order: Order, candidate: Candidate, host: Target) -> Built | None:
        """The file is the same everywhere."""
        return self.build(order, candidate)
